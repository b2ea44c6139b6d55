"""Tip-Adapter's choice and its public files, and LP++'s steps, against loops by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train
from tuning.method import unit

TIP = {
    "TRAINER__TIP_ADAPTER__SEARCH_SCALE": (8.0, 5.0),
    "TRAINER__TIP_ADAPTER__SEARCH_STEP": (4, 6),
    "TRAINER__TIP_ADAPTER__LOGIT_SCALE": 3.0,  # so that the cache has a say
}
TINY = {"OPTIM__MAX_EPOCH": 1, "OPTIM__WARMUP_EPOCH": -1, "DATASET__SUBSAMPLE_CLASSES": "base"}


def test_leave_one_out_by_hand(make_trainer):
    """Each training image is classified by a cache without its own key, for every α and β."""
    trainer = make_trainer("TipAdapter", DATASET__NUM_SHOTS=3, **TIP, **TINY)
    trainer.before_train()
    method, data = trainer.method, trainer.training_data()
    image, label = unit(data.features()), data.labels
    keys, text = method.cache.keys, unit(method.text_features())
    assert len(keys) == 9
    best, expected = -1, None
    for beta in [0.1 + i * 7.9 / 4 for i in range(4)]:
        for alpha in [0.1 + i * 4.9 / 6 for i in range(6)]:
            right = 0
            for i in range(len(image)):
                scores = 3.0 * text @ image[i]
                for j in range(len(image)):
                    if j != i:
                        near = torch.exp(beta * (image[i] @ keys[j] - 1))
                        scores[label[j]] += alpha * near
                right += int(scores.argmax() == label[i])
            if right > best:
                best, expected = right, (alpha, beta)
    assert (float(method.cache.alpha), float(method.cache.beta)) == pytest.approx(expected)
    assert expected != (0.1, 0.1)  # the first of the grid


def public_files(folder, keys, values, trained):
    """What the public code saves, in half precision."""
    folder.mkdir()
    if trained:
        torch.save(nn.Parameter(keys.half()), folder / "best_F_2shots.pt")
    torch.save(keys.t().half(), folder / "keys_2shots.pt")
    torch.save(values.t().half(), folder / "values_2shots.pt")


@pytest.mark.parametrize(
    ("name", "file"), [("TipAdapter", "keys_2shots.pt"), ("TipAdapterF", "best_F_2shots.pt")]
)
def test_public_tensors(command, tmp_path, capsys, name, file):
    """A run that starts from the files has their cache, and chooses α and β for it."""
    torch.manual_seed(3)
    keys, values = unit(torch.randn(6, 32)), torch.eye(3)[[2, 0, 1, 1, 0, 2]].t()
    public_files(tmp_path / "public", keys, values, trained=name == "TipAdapterF")
    options = {**TIP, **TINY, "OPTIM__LR": 0.0, "TEST__SAVE_PREDICTIONS": True}
    start = {"MODEL__INIT_WEIGHTS": tmp_path / "public" / file}
    train.main(command(name, output=tmp_path / "run", **start, **options))
    assert f"{file}: 6 keys" in capsys.readouterr().out
    folder = tmp_path / "run" / "tip_adapter"
    saved = torch.load(folder / "model.pth.tar-1", weights_only=True)
    held = {**saved["prepared"], **saved["state_dict"]}
    torch.testing.assert_close(held["cache.keys"], keys.half().float())
    torch.testing.assert_close(held["cache.values"], values)
    found = np.load(tmp_path / "run" / "predictions.npz")["logits"]
    plain = {**options, "TRAINER__TIP_ADAPTER__CHOICE": "fixed"}
    plain |= {"TRAINER__TIP_ADAPTER__INIT_ALPHA": 0.0}
    train.main(command(name, output=tmp_path / "zero", **start, **plain))
    zero_shot = np.load(tmp_path / "zero" / "predictions.npz")["logits"]
    assert (found - zero_shot).min() > 0  # each class has keys, whose share is positive


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        (torch.randn(32, 5), torch.eye(3)[[0, 1, 2, 0, 1]], "its keys (n,D) have shape (5, 32)"),
        (
            torch.randn(32, 6),
            torch.eye(4)[[0, 1, 2, 3, 0, 1]],
            "values (C,n) have shape (4, 6)",
        ),
        (torch.randn(32, 6), torch.eye(3)[[0, 1, 2]], "is of 6 images"),
        (torch.randn(32), torch.eye(3), "it isn't a matrix"),
        (torch.randn(32, 6), None, "values_2shots.pt"),
    ],
)
def test_other_tensors_are_refused(command, tmp_path, capsys, keys, values, message):
    torch.save(keys, tmp_path / "keys_2shots.pt")
    if values is not None:
        torch.save(values, tmp_path / "values_2shots.pt")
    words = command("TipAdapter", MODEL__INIT_WEIGHTS=tmp_path / "keys_2shots.pt", **TINY)
    with pytest.raises(Exception) as refused:
        train.main(words)
    told = str(refused.value) + capsys.readouterr().err
    assert message in told


@pytest.mark.parametrize("gradient", ["fixed", "accumulated"])
def test_lppps_steps_by_hand(make_trainer, gradient):
    """25 steps on all images: W and b each time, α at the 10th and 20th."""
    options = {"TRAINER__LPPP__ALPHA_GRAD": gradient, "TRAINER__LPPP__PASSES": 1}
    options |= {"DATALOADER__TRAIN_X__BATCH_SIZE": 100, "OPTIM__LR": 1.0, "OPTIM__MAX_EPOCH": 25}
    options |= {"OPTIM__WEIGHT_DECAY": 0.0, "OPTIM__LR_SCHEDULER": "single_step"}
    trainer = make_trainer("LPpp", OPTIM__WARMUP_EPOCH=-1, TEST__NO_TEST=True, **options)
    seen = []
    real = trainer.before_train

    def before_train():
        real()
        state = {name: p.detach().clone() for name, p in trainer.method.probe.named_parameters()}
        seen.append((state, trainer.pool.clone(), trainer.pool_labels.clone()))

    trainer.before_train = before_train
    trainer.train()
    (state, features, label) = seen[0]
    f, text = unit(features), unit(trainer.method.frozen_text)
    n, t = len(f), f @ text.t()
    rate = 4 * n / float(torch.linalg.eigvalsh(f.t() @ f)[-1])
    rate_alpha = n / (4 * float(t.square().sum(dim=0).max()))
    w, b, alpha = (state[name].clone() for name in ("weight", "bias", "alpha_vec"))
    speed, total = (torch.zeros_like(w), torch.zeros_like(b)), torch.zeros_like(alpha)
    for step in range(1, 26):
        leaves = [x.detach().requires_grad_() for x in (w, b, alpha)]
        z = f @ leaves[0].t() + leaves[1] + leaves[2] * t
        of_w, of_b, of_alpha = torch.autograd.grad(F.cross_entropy(z, label), leaves)
        speed = (0.9 * speed[0] + of_w, 0.9 * speed[1] + of_b)
        w, b = w - rate * speed[0], b - rate * speed[1]
        total = total + of_alpha if gradient == "accumulated" else of_alpha
        if step % 10 == 0:
            alpha = alpha - rate_alpha * total
    probe = trainer.method.probe
    for own, expected in ((probe.weight, w), (probe.bias, b), (probe.alpha_vec, alpha)):
        torch.testing.assert_close(own.detach(), expected, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(alpha, state["alpha_vec"])

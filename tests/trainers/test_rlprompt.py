"""RLPrompt on CLIP, by the formulas at the head of its file, in fp64; its search; its prompt."""

import json

import numpy as np
import pytest
import torch

import train
from clip import tokenize
from clip.clip import load_model
from clip.prompting import Encoders
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tests.tuning.small_methods import same
from trainers.rlprompt import Policy, RLPrompt, gap_reward
from tuning.method import unit

NAMES = ["ant", "brown bear", "cat", "desert fox", "eel"]
OPTIONS = {"TRAINER__RLPROMPT__N_WORDS": 3, "TRAINER__RLPROMPT__TOP_K": 4}


@pytest.fixture
def exact(make_trainer):
    """exact(**options) → a method in fp64, its networks moved, and CLIP in fp64."""

    def build(**options):
        trainer = make_trainer("RLPrompt", **{**OPTIONS, **options})
        clip = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
        method = RLPrompt.build_method(trainer.cfg, Encoders(clip), trainer.method.classes)
        method = method.double().freeze().train()
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in (*method.policy.parameters(), *method.target.parameters()):
                parameter += 0.1 * torch.randn_like(parameter)
        return method, clip

    return build


def states_by_hand(clip, ids):
    """The text tower's last hidden state (d_t) behind [SOS] and these words, of 77 tokens."""
    tokens = torch.zeros(1, 77, dtype=torch.long)
    tokens[0, : 1 + len(ids)] = torch.tensor([49406, *ids])
    x = clip.token_embedding(tokens) + clip.positional_embedding
    x = clip.transformer(x.transpose(0, 1)).transpose(0, 1)
    return clip.ln_final(x)[0, len(ids)].detach()


def network(policy, state):
    hidden = (policy.up.weight @ state + policy.up.bias).clamp(min=0)
    return policy.down.weight @ hidden + policy.down.bias


def encoded(clip, texts):
    with torch.no_grad():
        return clip.encode_text(tokenize(texts))


def test_loss_and_gradients(exact):
    method, clip = exact()
    uniform = torch.rand(4, 3, dtype=torch.float64)
    image, label = torch.randn(6, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 1])
    features = method.features(image, uniform=uniform)
    found = method.losses(features, label)["soft_q"]
    table = clip.token_embedding.weight.detach()[method.vocabulary]
    everything, rewards = [], []
    for p in range(4):
        ids, steps = [], []
        for t in range(3):
            state = states_by_hand(clip, ids)
            q = table @ network(method.policy, state)
            best = q.argsort(descending=True)[:4]
            shares = q[best].softmax(0).tolist()
            place = next(i for i in range(4) if uniform[p, t] < sum(shares[: i + 1]) or i == 3)
            target = (table @ network(method.target, state)).exp().sum().log().detach()
            steps.append((q[best[place]] - q.exp().sum().log(), target))
            ids.append(int(method.vocabulary[best[place]]))
        assert features.more["ids"][p].tolist() == ids
        words = method.encoders.text.decode(ids)
        text = encoded(clip, [f"{words} {name}." for name in NAMES])
        shares = (clip.logit_scale.exp() * unit(image) @ unit(text).t()).softmax(1)
        gaps = []
        for row, y in zip(shares.tolist(), label.tolist(), strict=True):
            gap = row[y] - max(x for c, x in enumerate(row) if c != y)
            gaps.append(gap * (200 if gap > 0 else 180))
        everything.append(steps)
        rewards.append(sum(gaps) / 6)
    torch.testing.assert_close(method.rewards(features, label).tolist(), rewards, rtol=1e-9, atol=0)
    mean = sum(rewards) / 4
    deviation = (sum((r - mean) ** 2 for r in rewards) / 4) ** 0.5
    loss = 0
    for steps, reward in zip(everything, rewards, strict=True):
        r = 5 * (reward - mean) / (deviation + 1e-4)
        for t, (advantage, target) in enumerate(steps):
            after = steps[t + 1][1] if t < 2 else r
            one_step = (advantage - (after - target)) ** 2
            to_end = (sum(a for a, _ in steps[t:]) - (r - target)) ** 2
            loss = loss + (one_step + to_end) / 2 / 4
    assert found.item() == pytest.approx(loss.item(), rel=1e-9)
    leaves = list(method.trained().values())
    for one, other in zip(*(torch.autograd.grad(x, leaves) for x in (found, loss)), strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_reward_by_hand():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    reward = gap_reward(p, torch.tensor([0, 2]), 200, 180)
    assert reward.item() == pytest.approx((200 * 0.2 - 180 * 0.5) / 2)


def test_it_starts_as_the_hand_written_prompt(exact):
    method, clip = exact()
    text = encoded(clip, [f"a photo of a {name}." for name in NAMES])
    image = torch.randn(2, 32, dtype=torch.float64)
    expected = clip.logit_scale.exp() * unit(image) @ unit(text).t()
    found = method.logits(method.eval().features(image))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert method.template == "a photo of a {}."


def test_the_best_prompt_is_kept(exact):
    method, clip = exact()
    words = ["old red house", "green apple tree", "big blue car"]
    ids = torch.tensor([method.encoders.text.token_ids(text) for text in words])
    for rewards, best in (((1.0, 3.0, 2.0), 1), ((2.5, 0.0, 3.0), 1), ((4.0, 0.0, 3.0), 0)):
        method.keep_best(ids, torch.tensor(rewards))
        assert method.template == f"{words[best]} {{}}."
        expected = encoded(clip, [f"{words[best]} {name}." for name in NAMES])
        torch.testing.assert_close(method.text_features(), expected, rtol=1e-10, atol=1e-10)


def test_numbers_of_parameters_and_words(make_trainer):
    own = sum(p.numel() for p in Policy(512, 2048).parameters())
    assert own == 2 * 512 * 2048 + 2048 + 512
    text = make_trainer("RLPrompt").method.encoders.text
    ids = list(text.word_ids().values())
    assert len(ids) > 30_000 and max(ids) < text.vocabulary
    sample = ids[:: len(ids) // 300]
    assert text.token_ids(text.decode(sample)) == sample and text.decode(sample)[-1] != " "
    weight, known = text.token_embedding.weight, text.token_embedding.weight.clone()
    try:
        with torch.no_grad():
            weight[ids[7:]] = 0  # words that this tower doesn't know
        method = make_trainer("RLPrompt").method
        assert method.vocabulary.tolist() == ids[:7]
    finally:
        weight.data.copy_(known)


def test_what_training_reads(make_trainer):
    trainer = make_trainer("RLPrompt", **OPTIONS)
    assert trainer.method.eval().features(torch.randn(2, 32)).more == {}  # in a test: nothing
    more = trainer.method.train().features(torch.randn(2, 32)).more
    assert more["texts"].shape == (4, 5, 32) and not more["target"].requires_grad
    trainer.epoch = 0
    views = {"img": torch.zeros(2, 3, 32, 32), "label": torch.zeros(2), "index": torch.arange(2)}
    drawn = [trainer.known_features(views)["uniform"] for _ in range(2)]
    assert drawn[0].shape == (4, 3) and torch.equal(*drawn)


def steps(trainer, number=1, **options):
    trainer.before_train()
    trainer.begin_epoch()
    trainer.before_epoch()
    trainer.num_batches = number + 1
    batch = next(iter(trainer.training_batches()))
    for trainer.batch_idx in range(number):
        batch["index"] = torch.full_like(batch["index"], trainer.batch_idx)  # what is drawn by
        losses = trainer.forward_backward(batch)
    return losses


@pytest.mark.parametrize("search", ["policy", "random"])
def test_a_step(make_trainer, monkeypatch, search):
    """All training images are looked at; the slow network follows, then the gradient is clipped."""
    options = {"TRAINER__RLPROMPT__SEARCH": search, "OPTIM__WARMUP_EPOCH": 0}
    options |= {"TRAINER__RLPROMPT__CLIP_NORM": 0.25, "TRAINER__RLPROMPT__POLYAK": 0.5}
    trainer = make_trainer("RLPrompt", OPTIM__LR=0.1, OPTIM__WEIGHT_DECAY=0, **OPTIONS, **options)
    method, seen = trainer.method, []
    rewards = method.rewards
    monkeypatch.setattr(method, "rewards", lambda f, y: seen.append(len(y)) or rewards(f, y))
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    slow = {name: p.clone() for name, p in method.target.named_parameters()}
    before = {name: p.clone() for name, p in method.policy.named_parameters()}
    losses = steps(trainer)
    assert seen == [len(trainer.dm.dataset.train_x)] and seen[0] > 4
    assert method.prompt.shape == (3,) and method.reward.isfinite()
    halfway = {name: (slow[name] + before[name]) / 2 for name in slow}
    same(dict(method.target.named_parameters()), halfway, rtol=1e-5, atol=1e-9)
    after = dict(method.policy.named_parameters())
    moved = sum((after[k] - before[k]).square().sum() for k in before).sqrt().item()
    if search == "policy":
        assert moved == pytest.approx(0.1 * 0.25, rel=1e-3) and losses["loss"] > 0
    else:
        assert moved == 0 and set(losses) == {"loss", "loss_reward"}


def test_random_prompts_are_of_all_words(make_trainer):
    method = make_trainer("RLPrompt", TRAINER__RLPROMPT__SEARCH="random").method
    ids = method.write(torch.tensor([[0.0, 0.5, 1 - 2**-24]]))["ids"][0]
    number = len(method.vocabulary)
    assert torch.equal(ids, method.vocabulary[[0, number // 2, number - 1]])


def test_a_policy_finds_what_is_rewarded(make_trainer, monkeypatch):
    """One word of seven in each place: by chance there are .43 in a prompt."""
    options = {**OPTIONS, "TRAINER__RLPROMPT__PROMPTS": 16, "TRAINER__RLPROMPT__TOP_K": 0}
    options |= {"OPTIM__NAME": "adam", "OPTIM__LR": 0.01, "OPTIM__WARMUP_EPOCH": 0}
    trainer = make_trainer("RLPrompt", **options)
    method = trainer.method
    method.vocabulary, method.table = method.vocabulary[:7], method.table[:7]
    right, counts = method.vocabulary[4], []

    def rewards(features, label):
        counts.append((features.more["ids"] == right).sum(dim=1).float())
        return counts[-1]

    monkeypatch.setattr(method, "rewards", rewards)
    steps(trainer, 40)
    assert counts[0].mean() < 1 and torch.stack(counts[-10:]).mean() > 2
    assert (method.prompt == right).all() and method.reward == 3


def result(folder):
    return json.loads((folder / "result.json").read_text())


def logits(folder):
    return np.load(folder / "predictions.npz")["logits"]


def test_its_prompt_is_a_file(command, make_trainer, tmp_path, capsys):
    options = {"TEST__SAVE_PREDICTIONS": True, "DATASET__SUBSAMPLE_CLASSES": "base"}
    own = tmp_path / "run"
    train.main(command("RLPrompt", output=own, **options, **OPTIONS))
    file = own / "prompt.txt"
    template = file.read_text().strip()
    assert template == result(own)["prompt"] and len(template.split()) == 4
    assert f"Prompt: {template} (reward " in capsys.readouterr().out
    # As a template of zero-shot CLIP, of these classes and of new ones.
    zero_shot = {**options, "TRAINER__ZEROSHOT__TEMPLATE_FILE": file}
    for classes in ("base", "new"):
        folders = tmp_path / f"rl_{classes}", tmp_path / f"zero_shot_{classes}"
        words = ["--eval-only", "--model-dir", str(own)]
        of_classes = {"DATASET__SUBSAMPLE_CLASSES": classes}
        train.main(command("RLPrompt", *words, output=folders[0], **{**options, **of_classes}))
        train.main(command("ZeroshotCLIP", output=folders[1], **{**zero_shot, **of_classes}))
        np.testing.assert_allclose(logits(folders[0]), logits(folders[1]), rtol=1e-4, atol=1e-4)
    assert f"TEMPLATE: {template!r}".replace("'", "") in (
        (folders[1] / "config.yaml").read_text().replace("'", "")
    )
    cfg = make_trainer("ZeroshotCLIP", **zero_shot).cfg
    assert (template, "") == (cfg.DATASET.TEMPLATE, cfg.TRAINER.ZEROSHOT.TEMPLATE_FILE)
    with pytest.raises(UserError, match="give one"):
        make_trainer("ZeroshotCLIP", **zero_shot, DATASET__TEMPLATE="a {}.")
    file.write_text("no place")
    with pytest.raises(UserError, match=r"isn't one line with one \{\}"):
        make_trainer("ZeroshotCLIP", **zero_shot)
    file.unlink()
    with pytest.raises(UserError, match="can't read"):
        make_trainer("ZeroshotCLIP", **zero_shot)


def test_a_search_goes_on(command, tmp_path, monkeypatch):
    """The prompt that was kept, and the slow network, are in what a run goes on from."""
    train.main(command("RLPrompt", output=tmp_path / "whole", **OPTIONS))
    update, calls = RLPrompt.end_step, []

    def interrupted(trainer):
        calls.append(1)
        if len(calls) == trainer.num_batches + 2:
            raise KeyboardInterrupt
        update(trainer)

    words = command("RLPrompt", output=tmp_path / "parts", **OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RLPrompt, "end_step", interrupted)
        train.main(words)
    train.main(words)
    parts, whole = (
        torch.load(tmp_path / name / "prompt_learner/model.pth.tar-2", weights_only=True)
        for name in ("parts", "whole")
    )
    same(parts["state_dict"], whole["state_dict"])
    same(parts["prepared"], whole["prepared"])
    assert result(tmp_path / "parts")["prompt"] == result(tmp_path / "whole")["prompt"]


def test_tokens_that_are_no_words_are_said(command, tmp_path, capsys):
    options = {**OPTIONS, "TRAINER__RLPROMPT__WHOLE_WORDS": False}
    train.main(command("RLPrompt", output=tmp_path / "run", **options))
    out = capsys.readouterr().out
    assert "Prompts are 3 of 49,406 tokens" in out
    assert "As a text it has other tokens" in out


def test_depts_twin_is_refused_with_the_reason():
    with pytest.raises(UserError, match="DePT_RLPrompt' can't be had: RLPrompt declares no loss"):
        TRAINER_REGISTRY.get("DePT_RLPrompt")


def test_an_unknown_search(make_trainer):
    with pytest.raises(UserError, match=r"TRAINER\.RLPROMPT\.SEARCH"):
        make_trainer("RLPrompt", TRAINER__RLPROMPT__SEARCH="greedy")

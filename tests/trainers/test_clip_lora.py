"""CLIP-LoRA: where it starts, which blocks, counted iterations, files of its public code."""

import pytest
import torch

from dassl.utils import UserError
from tests.conftest import leave_zeros

OPTION = "TRAINER__CLIP_LORA__"


def made(make_trainer, **options):
    return make_trainer("CLIP_LoRA", **{f"{OPTION}{k}": v for k, v in options.items()}).method


def test_it_starts_as_clip(make_trainer):
    """The sentences are "a photo of a {}.", whatever the data set's are; the scale is 100."""
    method = make_trainer("CLIP_LoRA", DATASET__TEMPLATE="art of {}.").method.eval()
    image = torch.randn(2, 3, 32, 32)
    sentences = method.classes.sentences("a photo of a {}.")
    with torch.no_grad():
        features = method.features(image)
        expected = method.encoders.image(image), method.encoders.text.encode(sentences)
        cosine = torch.cosine_similarity(expected[0][:, None], expected[1][None], dim=-1)
    torch.testing.assert_close(features.image, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.text, expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.logits(features), 100 * cosine, rtol=1e-4, atol=1e-3)


def test_dropout_is_of_training_alone(make_trainer):
    method = made(make_trainer, DROPOUT_RATE=0.5)
    leave_zeros(method)
    image = torch.randn(2, 3, 32, 32)

    @torch.no_grad()
    def twice(training):
        method.train(training)
        method.forget_text()
        return [method.encode_image(image) for _ in range(2)]

    assert torch.equal(*twice(False)) and not torch.equal(*twice(True))


@pytest.mark.parametrize(
    ("encoder", "position", "blocks"),
    [
        ("both", "all", [0, 1, 2]),
        ("both", "bottom", [0]),
        ("both", "mid", [1]),
        ("both", "up", [2]),
        ("both", "half-bottom", [0]),
        ("vision", "half-up", [1, 2]),
        ("text", "top3", [0, 1, 2]),
    ],
)
def test_which_blocks_are_changed(make_trainer, encoder, position, blocks):
    method = made(make_trainer, POSITION=position, ENCODER=encoder, PARAMS="('v', 'o')")
    towers = ["text", "vision"] if encoder == "both" else [encoder]
    assert method.lora.places == [(tower, block) for tower in towers for block in blocks]
    found = [(c.layer, c.part, c.scale) for c in method.lora.changes(towers[0], 0.5, 0.0)]
    assert found == [(block, part, 0.5) for block in blocks for part in "vo"]
    assert method.image_tower_untouched == (encoder == "text")
    assert method.image_layer() == (None if encoder == "text" else blocks[0])


def test_the_scale(make_trainer):
    method = made(make_trainer, R=4, ALPHA=3.0)
    assert {change.scale for change in method.image_changes()} == {1.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"PARAMS": "('q', 'x')"}, "PARAMS is q, x; some of: q, k, v, o"),
        ({"PARAMS": "()"}, "PARAMS is none"),
        ({"PARAMS": "('q', 'q')"}, "PARAMS is q, q"),
        ({"POSITION": "top"}, "POSITION"),
        ({"ENCODER": "image"}, "ENCODER"),
    ],
)
def test_what_is_not_there_is_refused(make_trainer, options, message):
    with pytest.raises(UserError, match=message):
        made(make_trainer, **options)


def test_it_rests_when_the_iterations_are_done(make_trainer):
    trainer = make_trainer(
        "CLIP_LoRA", **{f"{OPTION}N_ITERS": 1}, DATALOADER__TRAIN_X__BATCH_SIZE=2
    )
    assert (trainer.iterations, trainer.max_epoch) == (2, 1)
    seen = []
    update = trainer.model_update

    def spy(*args):
        before = trainer.method.trained_state()
        update(*args)
        after = trainer.method.trained_state()
        moved = any(not torch.equal(before[name], after[name]) for name in before)
        seen.append((moved, trainer._optims["clip_lora"].param_groups[0]["lr"]))

    trainer.model_update = spy
    trainer.train()
    assert [moved for moved, _ in seen] == [True, True, False, False, False]
    rates = [rate for _, rate in seen[:2]]
    assert rates == pytest.approx([0.0035, (0.0035 + 1e-6) / 2])


def test_iterations_for_each_shot_need_shots(make_trainer):
    with pytest.raises(UserError, match="N_ITERS counts for each shot"):
        make_trainer("CLIP_LoRA", **{f"{OPTION}N_ITERS": 1}, DATASET__NUM_SHOTS=-1)


def public_file(method, path, **metadata):
    """As the public code writes it."""
    weights: dict = {}
    for name, value in method.lora.state_dict().items():
        layer, part, leaf = name.split(".")
        weights.setdefault(layer, {}).setdefault(part, {})[leaf] = torch.full_like(value, 0.25)
    known = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "all"}
    torch.save({"weights": weights, "metadata": known | metadata}, path)
    return path


def test_a_public_file_is_a_start(make_trainer, tmp_path, capsys):
    file = public_file(made(make_trainer), tmp_path / "lora_weights.pt")
    method = make_trainer("CLIP_LoRA", MODEL__INIT_WEIGHTS=file).method
    assert all(bool((p == 0.25).all()) for p in method.trained().values())
    assert "a checkpoint of the original code (CLIP-LoRA)" in capsys.readouterr().out
    twin = make_trainer("DePT_CLIP_LoRA", MODEL__INIT_WEIGHTS=file).method
    assert all(bool((p == 0.25).all()) for p in twin.method.trained().values())


def test_a_public_file_of_other_settings_is_refused(make_trainer, tmp_path):
    file = public_file(made(make_trainer), tmp_path / "lora_weights.pt", alpha=2)
    for name in ("CLIP_LoRA", "DePT_CLIP_LoRA"):
        with pytest.raises(UserError, match="alpha 2, this run has 1.0: set TRAINER.CLIP_LORA"):
            make_trainer(name, MODEL__INIT_WEIGHTS=file)

"""Checkpoints as the original code writes them: names, pickled schedulers, no class names."""

import pytest
import torch

import train
from dassl.utils import UserError
from tuning import original_checkpoints


def prompts(n, width):
    return torch.randn(n, width)


def coop(m=4):
    return {"ctx": prompts(m, 64)}


def meta_net():
    return {
        "meta_net.linear1.weight": torch.randn(2, 32),
        "meta_net.linear1.bias": torch.randn(2),
        "meta_net.linear2.weight": torch.randn(64, 2),
        "meta_net.linear2.bias": torch.randn(64),
    }


def maple():
    state = {
        "ctx": prompts(2, 64),
        "proj.weight": torch.randn(64, 64),
        "proj.bias": prompts(1, 64)[0],
    }
    for i in range(2):
        state[f"compound_prompts_text.{i}"] = prompts(2, 64)
        state[f"compound_prompt_projections.{i}.weight"] = torch.randn(64, 64)
        state[f"compound_prompt_projections.{i}.bias"] = torch.randn(64)
    return state


def vision(n):
    deep = {f"image_encoder.transformer.resblocks.{i}.VPT_shallow": prompts(n, 64) for i in (1, 2)}
    return {"image_encoder.VPT": prompts(n, 64), **deep}


def under(prefix, state):
    return {f"{prefix}.{k}": v for k, v in state.items()}


def head(classes):
    return {
        "film_lp_img.scale": torch.randn(32),
        "film_lp_img.bias": torch.randn(32),
        "film_lp_text.scale": torch.randn(32),
        "film_lp_text.bias": torch.randn(32),
        "linear_probe_proj.weight": torch.randn(classes, 32),
        "linear_probe_proj.bias": torch.randn(classes),
    }


FROZEN = {"image_encoder.conv1.weight": torch.zeros(64, 3, 8, 8), "logit_scale": torch.zeros(())}

# Trainer: (model name, its state dict for three base classes).
LAYOUTS = {
    "CoOp": ("prompt_learner", coop),
    "KgCoOp": (
        "prompt_learner",
        lambda: {**coop(), **meta_net(), "bias_vectors": torch.zeros(1, 64)},
    ),
    "CoCoOp": ("prompt_learner", lambda: {**coop(), **meta_net()}),
    "MaPLe": ("MultiModalPromptLearner", lambda: {**under("prompt_learner", maple()), **FROZEN}),
    "VPT": ("prompt_learner", lambda: {**vision(8), **FROZEN}),
    "PromptSRC": (
        "VLPromptLearner",
        lambda: {
            **under("prompt_learner", coop()),
            **vision(4),
            "text_encoder.transformer.resblocks.1.VPT_shallow": prompts(4, 64),
            **FROZEN,
        },
    ),
    "DePT_CoOp": ("PromptLearner", lambda: {**under("prompt_learner", coop()), **head(3)}),
    "DePT_KgCoOp": ("PromptLearner", lambda: {**under("prompt_learner", coop()), **head(3)}),
    "DePT_CoCoOp": (
        "PromptLearner",
        lambda: {**under("prompt_learner", {**coop(), **meta_net()}), **head(3)},
    ),
    "DePT_MaPLe": (
        "MultiModalPromptLearner",
        lambda: {**under("prompt_learner", maple()), **head(3), **FROZEN},
    ),
}


def token_suffix(trainer, n_ctx):
    """What the original PromptLearner registers: the embeddings after the context."""
    text = trainer.method.encoders.text
    layout = text.layout(trainer.method.classes.names, n_ctx)
    return text.token_embedding(layout.tokens[:, 1 + n_ctx :]).detach()


def write(folder, name, state):
    """As Dassl's save_model does: with the scheduler's whole state, objects and all."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    (folder / name).mkdir(parents=True)
    torch.save(
        {
            "state_dict": state,
            "epoch": 10,
            "optimizer": optimizer.state_dict(),
            "scheduler": {"successor": scheduler, "last_epoch": 10},
            "val_result": None,
        },
        folder / name / "model.pth.tar-10",
    )
    return folder / name / "model.pth.tar-10"


@pytest.mark.parametrize("name", LAYOUTS)
def test_evaluates_on_base_and_new_and_starts_training(
    make_trainer, command, tmp_path, capsys, name
):
    torch.manual_seed(3)
    model_name, build = LAYOUTS[name]
    state = build()
    base = make_trainer(name, output=tmp_path / "a", DATASET__SUBSAMPLE_CLASSES="base")
    if name != "VPT":  # VPT has no prompt learner
        prefix = "" if "ctx" in state else "prompt_learner."
        state[f"{prefix}token_suffix"] = token_suffix(base, len(state[f"{prefix}ctx"]))
        state[f"{prefix}token_prefix"] = torch.zeros(3, 1, 64)
    file = write(tmp_path / "original", model_name, state)

    capsys.readouterr()
    base.load_model(str(tmp_path / "original"), epoch=10)
    said = capsys.readouterr().out
    method = name.removeprefix("DePT_")
    if name in ("CoOp", "KgCoOp", "CoCoOp", "MaPLe", "PromptSRC"):
        assert "a checkpoint of the original code" in said and method in said
    taken = base.method.trained_state()
    new = make_trainer(name, output=tmp_path / "b", DATASET__SUBSAMPLE_CLASSES="new")
    new.load_model(str(tmp_path / "original"))
    every = [v.flatten() for k, v in state.items() if v.dtype == torch.float32]
    for key, value in taken.items():
        assert any(
            v.shape == value.flatten().shape and torch.equal(v, value.flatten()) for v in every
        ), key
    if name.startswith("DePT"):
        assert base.method.rows == [0, 1, 2]
        assert new.method.rows is None
    assert 0 <= new.test() <= 100

    started = make_trainer(
        name,
        output=tmp_path / "c",
        DATASET__SUBSAMPLE_CLASSES="base",
        MODEL__INIT_WEIGHTS=file,
    )
    for key, value in started.method.trained_state().items():
        assert torch.equal(value, taken[key])


def test_classes_are_told_by_their_token_embeddings(make_trainer, tmp_path):
    """A checkpoint of all classes, tested on some of them: their own rows of W are taken."""
    every = make_trainer("DePT_CoOp", output=tmp_path / "a")
    state = {**under("prompt_learner", coop()), **head(5)}
    state["prompt_learner.token_suffix"] = token_suffix(every, 4)
    write(tmp_path / "original", "PromptLearner", state)
    new = make_trainer("DePT_CoOp", output=tmp_path / "b", DATASET__SUBSAMPLE_CLASSES="new")
    new.load_model(str(tmp_path / "original"))
    assert new.method.rows == [3, 4]


def test_nothing_in_a_checkpoint_is_executed(make_trainer, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    folder = tmp_path / "run" / "prompt_learner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": coop(), "scheduler": Evil()}, folder / "model.pth.tar-10")
    trainer = make_trainer("CoOp", output=tmp_path / "a")
    with pytest.raises(UserError):
        trainer.load_model(str(tmp_path / "run"))
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_of_another_method_is_refused(make_trainer, tmp_path):
    write(tmp_path / "original", "prompt_learner", coop())
    trainer = make_trainer("CoCoOp", output=tmp_path / "a")
    with pytest.raises(UserError, match="of another method: it lacks meta_net"):
        trainer.load_model(str(tmp_path / "original"))


def test_wrong_file_is_one_line(command, tmp_path):
    with pytest.raises(UserError, match="nowhere.pth"):
        train.main(command("CoOp", MODEL__INIT_WEIGHTS=tmp_path / "nowhere.pth"))
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match="text.pth"):
        original_checkpoints.read(tmp_path / "text.pth")

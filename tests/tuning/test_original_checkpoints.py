"""Checkpoints as the original code writes them: names, pickled schedulers, no class names."""

import random
import re

import pytest
import torch

import train
from clip import tokenize
from dassl.utils import UserError
from tests.conftest import CLASSES, tiny_clip
from tests.datasets import layouts
from tests.datasets.layouts import WORDNET
from tuning import original_checkpoints
from tuning.method import Features


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


def pre():
    lstm = torch.nn.LSTM(64, 32, bidirectional=True).state_dict()
    return {**coop(), **under("encoder_network.lstm_head", lstm)}


def skipt():
    """Both towers whole: what is trained, blocks 1 and 2, and what isn't."""
    clip = tiny_clip(seed=1)
    towers = clip.state_dict()
    text = {name: value for name, value in towers.items() if "visual." not in name}
    del text["logit_scale"]
    image = {name.removeprefix("visual."): v for name, v in towers.items() if name not in text}
    del image["logit_scale"]
    return {**under("text_encoder", text), **under("image_encoder", image)}


def capt():
    net = {"down.weight": torch.randn(32, 32), "down.bias": torch.randn(32)}
    net |= {"up.weight": torch.randn(32, 64), "up.bias": torch.randn(64)}
    return {**coop(), **under("ucp.unified_transfer", net)}


def tcp():
    net = {"linear1.weight": torch.randn(8, 32), "linear1.bias": torch.randn(8)}
    net |= {"linear2.weight": torch.randn(256, 8), "linear2.bias": torch.randn(256)}
    return {**coop(), **under("meta_net", net)}


def lasp():
    norms = {
        f"image_encoder.transformer.resblocks.{i}.{norm}.{kind}": torch.randn(64)
        for i in range(3)
        for norm in ("ln_1", "ln_2")
        for kind in ("weight", "bias")
    }
    learner = {**coop(), "w": torch.randn(1, 32), "class_text_features": torch.zeros(35, 3, 32)}
    return {**under("prompt_learner", learner), **norms, **FROZEN}


FROZEN = {"image_encoder.conv1.weight": torch.zeros(64, 3, 8, 8), "logit_scale": torch.zeros(())}

# Trainer: (model name, its state dict for three base classes).
LAYOUTS = {
    "CoOp": ("prompt_learner", coop),
    "CLIPAdapter": (
        "clip_adapter",
        lambda: {"fc.0.weight": torch.randn(8, 32), "fc.2.weight": torch.randn(32, 8)},
    ),
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
    "PRE": ("prompt_learner", pre),
    "TCP": ("prompt_learner", tcp),
    "SkipT": ("learnable_params", skipt),
    "CaPT_CoOp": ("learnable_params", lambda: under("prompt_learner", capt())),
    "CaPT_KgCoOp": (
        "learnable_params",
        lambda: under("prompt_learner", {**capt(), **meta_net(), "bias_vectors": prompts(1, 64)}),
    ),
    "DePT_CaPT_KgCoOp": (
        "learnable_params",
        lambda: {
            **under("prompt_learner", {**capt(), **meta_net(), "bias_vectors": prompts(1, 64)}),
            **{
                name.replace("film_lp_", "film_").replace("linear_probe_proj", "classifier"): value
                for name, value in head(3).items()
            },
        },
    ),
    "LASP": ("prompt_learner", lasp),
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


def token_suffix(trainer, n_ctx, names=None):
    """What the original PromptLearner registers: what follows the context in whole sentences.

    Their words are "a photo of a" everywhere, also where the context starts at random ("X X X X").
    """
    names = trainer.method.classes.names if names is None else names
    ids = tokenize([f"a photo of a {name.replace('_', ' ')}." for name in names])
    return trainer.method.encoders.text.token_embedding(ids)[:, 1 + n_ctx :].detach()


def dept_coop(trainer, names=None, classes=None):
    """A state dict of DePT on CoOp; without `names` it has no class identity."""
    state = {**under("prompt_learner", coop()), **head(classes or len(names))}
    if names is not None:
        state["prompt_learner.token_suffix"] = token_suffix(trainer, 4, names)
    return state


def write(folder, name, state, epoch=10):
    """As Dassl's save_model does: with the scheduler's whole state, objects and all."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    (folder / name).mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "state_dict": state,
            "epoch": epoch,
            "optimizer": optimizer.state_dict(),
            "scheduler": {"successor": scheduler, "last_epoch": 10},
            "val_result": None,
        },
        folder / name / f"model.pth.tar-{epoch}",
    )
    return folder / name / f"model.pth.tar-{epoch}"


@pytest.mark.parametrize("name", LAYOUTS)
def test_evaluates_on_base_and_new_and_starts_training(
    make_trainer, command, tmp_path, capsys, name
):
    torch.manual_seed(3)
    model_name, build = LAYOUTS[name]
    state = build()
    base = make_trainer(name, output=tmp_path / "a", DATASET__SUBSAMPLE_CLASSES="base")
    if name not in ("SkipT", "VPT", "CLIPAdapter"):  # they have no prompt learner
        prefix = "" if "ctx" in state else "prompt_learner."
        state[f"{prefix}token_suffix"] = token_suffix(base, len(state[f"{prefix}ctx"]))
        state[f"{prefix}token_prefix"] = torch.zeros(3, 1, 64)
    file = write(tmp_path / "original", model_name, state)

    capsys.readouterr()
    base.load_model(str(tmp_path / "original"), epoch=10)
    said = capsys.readouterr().out
    method = name.removeprefix("DePT_")
    if name in ("CoOp", "KgCoOp", "CoCoOp", "MaPLe", "PromptSRC", "PRE", "LASP", "TCP"):
        assert "a checkpoint of the original code" in said and method in said
    taken = base.method.trained_state()
    new = make_trainer(name, output=tmp_path / "b", DATASET__SUBSAMPLE_CLASSES="new")
    new.load_model(str(tmp_path / "original"))
    every = [v.flatten() for k, v in state.items() if v.dtype == torch.float32]
    for key, value in taken.items():
        assert key in said
        assert any(
            v.shape == value.flatten().shape and torch.equal(v, value.flatten()) for v in every
        ), key
    if name.startswith("DePT"):
        assert base.method.rows == [0, 1, 2]
        assert new.method.rows is None
    new.test()

    started = make_trainer(
        name,
        output=tmp_path / "c",
        DATASET__SUBSAMPLE_CLASSES="base",
        MODEL__INIT_WEIGHTS=file,
    )
    for key, value in started.method.trained_state().items():
        assert torch.equal(value, taken[key])


def test_norms_that_a_run_does_not_train_are_left_with_a_word(make_trainer, tmp_path, capsys):
    """LASP's are trained ones; those in others' checkpoints are the frozen CLIP's own."""
    options = {"DATASET__SUBSAMPLE_CLASSES": "base", "TRAINER__LASP__FINETUNE_VIT_LN": False}
    trainer = make_trainer("LASP", **options)
    write(tmp_path / "original", "prompt_learner", state := lasp())
    trainer.load_model(str(tmp_path / "original"), epoch=10)
    left = capsys.readouterr().out.partition("Left there: ")[2]
    assert "image_encoder.transformer.resblocks.2.ln_1.weight" in left
    only_lasps = ("prompt_learner.w", "prompt_learner.class_text_features")
    others = {key: value for key, value in state.items() if key not in only_lasps}
    coop_trainer = make_trainer("CoOp", **options)
    write(tmp_path / "other", "prompt_learner", others)
    coop_trainer.load_model(str(tmp_path / "other"), epoch=10)
    assert "ln_1" not in capsys.readouterr().out.partition("Left there: ")[2]


def test_classes_are_told_by_their_token_embeddings(make_trainer, tmp_path):
    """A checkpoint of all classes, tested on some of them: their own rows of W are taken."""
    new = make_trainer("DePT_CoOp", DATASET__SUBSAMPLE_CLASSES="new")
    state = dept_coop(new, CLASSES)
    state["prompt_learner.token_suffix"] = state["prompt_learner.token_suffix"].half()  # PREC fp16
    write(tmp_path / "original", "PromptLearner", state)
    new.load_model(str(tmp_path / "original"))
    assert new.method.rows == [3, 4]


# Display names of CLASSES: twins among the base classes, and twins of a base and a new class.
TWINS = ["missile", "crane", "missile", "crane", "eel"]


@pytest.fixture
def twins(picture_root, tmp_path):
    """A data folder whose classes have the display names of TWINS."""
    root = tmp_path / "twins"
    root.mkdir()
    for folder in CLASSES:
        (root / folder).symlink_to(picture_root / folder)
    pairs = zip(CLASSES, TWINS, strict=True)
    (root / "classnames.txt").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    return root


@pytest.mark.parametrize(
    "trained,tested,rows",
    [
        (range(5), "all", [0, 1, 2, 3, 4]),
        (range(5), "base", [0, 1, 2]),
        (range(5), "new", [3, 4]),
        (range(3), "base", [0, 1, 2]),
        (range(3), "new", None),  # its crane is the other one
        (range(3, 5), "new", [0, 1]),
        (range(3, 5), "base", None),
        ([0, 2, 1, 3, 4], "all", [0, 2, 1, 3, 4]),  # equal ones in their order
        ([1, 0, 2], "base", [1, 0, 2]),
    ],
)
def test_equal_names_are_told_apart_by_their_order(
    make_trainer, twins, tmp_path, trained, tested, rows
):
    options = {"DATASET__ROOT": twins, "DATASET__SUBSAMPLE_CLASSES": tested}
    trainer = make_trainer("DePT_CoOp", **options)
    state = dept_coop(trainer, [TWINS[i] for i in trained])
    write(tmp_path / "original", "PromptLearner", state)
    trainer.load_model(str(tmp_path / "original"))
    assert trainer.method.rows == rows
    if rows is not None:
        weight = state["linear_probe_proj.weight"]
        image, text = torch.randn(2, 32), torch.randn(len(rows), 32)
        trainer.method.weight.fill_(1.0)
        film = state["film_lp_img.scale"] * image + state["film_lp_img.bias"]
        expected = (film @ weight.T + state["linear_probe_proj.bias"])[:, rows]
        torch.testing.assert_close(trainer.method.logits(Features(image, text)), expected)


def test_a_context_per_class_finds_its_twin(make_trainer, twins, tmp_path):
    options = {"DATASET__ROOT": twins, "TRAINER__COOP__CSC": True}
    new = make_trainer("CoOp", DATASET__SUBSAMPLE_CLASSES="new", **options)
    ctx = torch.randn(5, 4, 64)
    state = {"ctx": ctx, "token_suffix": token_suffix(new, 4, TWINS)}
    write(tmp_path / "original", "prompt_learner", state)
    new.load_model(str(tmp_path / "original"))
    assert torch.equal(new.method.context.ctx, ctx[3:])


@pytest.mark.parametrize("name,rows", [("ImageNet", [0, 1, 2, 3, 4]), ("ImageNetR", [0, 3])])
def test_a_head_for_all_of_imagenet_serves_its_variants(make_trainer, tmp_path, name, rows):
    """The variant holds one of two classes of a name: which one follows from the whole list."""
    names = [WORDNET[i] for i in sorted(WORDNET)]
    layouts.imagenet(tmp_path / "data", random.Random(1))
    # The head's rows are by WordNet id, whatever the order of this file.
    layouts.classnames_txt(tmp_path / "data/imagenet", dict(reversed(WORDNET.items())))
    for row in rows:
        folder = tmp_path / "data/imagenet-rendition/imagenet-r" / sorted(WORDNET)[row]
        layouts.image(folder / "0.jpg")
    trainer = make_trainer("DePT_CoOp", DATASET__ROOT=tmp_path / "data", DATASET__NAME=name)
    write(tmp_path / "original", "PromptLearner", dept_coop(trainer, names))
    trainer.load_model(str(tmp_path / "original"))
    assert trainer.method.rows == rows


@pytest.mark.parametrize(
    "names,classes,tested,line",
    [
        (CLASSES[:3], 3, "new", "this run's 2 classes are new to it"),
        (CLASSES[:3], 3, "all", r"2 of this run's 5 classes are new to it \(desert fox, eel\)"),
        (None, 4, "base", "doesn't tell which 4 classes it is for, and this run has 3"),
        (None, 2, "new", "doesn't tell its classes, and this run's are the new ones"),
    ],
)
def test_a_head_left_out_is_said(make_trainer, tmp_path, capsys, names, classes, tested, line):
    trainer = make_trainer("DePT_CoOp", DATASET__SUBSAMPLE_CLASSES=tested)
    write(tmp_path / "original", "PromptLearner", dept_coop(trainer, names, classes))
    capsys.readouterr()
    trainer.load_model(str(tmp_path / "original"))
    said = capsys.readouterr().out
    assert re.findall("^The CAT head is left out: .*; the ITM head alone is used$", said, re.M)
    assert len(re.findall(line, said)) == 1
    assert re.findall("^Taken from .*$", said, re.M) == ["Taken from the checkpoint: context.ctx"]
    assert trainer.method.rows is None


def test_an_assumed_identity_is_said(make_trainer, tmp_path, capsys):
    trainer = make_trainer("DePT_CoOp", DATASET__SUBSAMPLE_CLASSES="base")
    file = write(tmp_path / "original", "PromptLearner", dept_coop(trainer, None, 3))
    line = "The CAT head's 3 classes are assumed to be this run's classes in order"
    capsys.readouterr()
    trainer.load_model(str(tmp_path / "original"))
    assert capsys.readouterr().out.count(line) == 1
    assert trainer.method.rows == [0, 1, 2]
    make_trainer("DePT_CoOp", DATASET__SUBSAMPLE_CLASSES="base", MODEL__INIT_WEIGHTS=file)
    assert capsys.readouterr().out.count(line) == 1
    make_trainer("DePT_CoOp", MODEL__INIT_WEIGHTS=file)
    said = capsys.readouterr().out
    assert "The CAT head's classifier is left out: the checkpoint doesn't tell which 3" in said


def test_a_start_without_a_head_says_nothing_of_one(make_trainer, tmp_path, capsys):
    file = write(tmp_path / "original", "prompt_learner", {**vision(8), **FROZEN})
    make_trainer("DePT_VPT", MODEL__INIT_WEIGHTS=file)
    assert "CAT head" not in capsys.readouterr().out


def test_other_frozen_words_are_said(make_trainer, tmp_path, capsys):
    trainer = make_trainer("MaPLe")
    state = under("prompt_learner", maple())
    line = "Its prompts go on with other words after the context"
    for n_ctx, said in ((2, False), (4, True)):
        suffix = token_suffix(trainer, n_ctx)
        end = suffix[:, -1:].repeat(1, n_ctx - 2, 1)
        state["prompt_learner.token_suffix"] = torch.cat([suffix, end], dim=1)
        write(tmp_path / "original", "MultiModalPromptLearner", state)
        capsys.readouterr()
        trainer.load_model(str(tmp_path / "original"))
        assert (line in capsys.readouterr().out) is said


def test_what_kgcoop_never_uses_is_named_as_left(make_trainer, tmp_path, capsys):
    trainer = make_trainer("KgCoOp")
    _, build = LAYOUTS["KgCoOp"]
    write(tmp_path / "original", "prompt_learner", build())
    trainer.load_model(str(tmp_path / "original"))
    left = re.search("^Left there: (.*)$", capsys.readouterr().out, re.M)[1].split(", ")
    assert sorted(left) == ["bias_vectors", *sorted(meta_net())]


@pytest.mark.parametrize("name", LAYOUTS)
def test_model_dir_is_an_original_s_folder(command, make_trainer, tmp_path, capsys, name):
    """The newest epoch by number, the best where there is one, or the epoch asked for."""
    model_name, build = LAYOUTS[name]
    for epoch in (9, 10):
        file = write(tmp_path / "original", model_name, build(), epoch)
    said = {}
    for words in ((), ("--load-epoch", "9"), ("best",)):
        if words == ("best",):
            file.rename(file.with_name("model-best.pth.tar"))
            words = ()
        train.main(
            command(
                *(name, "--eval-only", "--model-dir", str(tmp_path / "original"), *words),
                output=tmp_path / f"out{len(said)}",
                DATASET__SUBSAMPLE_CLASSES="base",
            )
        )
        said[len(said)] = capsys.readouterr().out
    folder = tmp_path / "original" / model_name
    for text, loaded in zip(
        said.values(), ("model.pth.tar-10", "model.pth.tar-9", "model-best.pth.tar"), strict=True
    ):
        assert str(folder / loaded) in text and "accuracy" in text


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
    with pytest.raises(UserError, match="of another method: it lacks context.meta_net"):
        trainer.load_model(str(tmp_path / "original"))


def test_wrong_file_is_one_line(command, tmp_path):
    with pytest.raises(UserError, match="nowhere.pth"):
        train.main(command("CoOp", MODEL__INIT_WEIGHTS=tmp_path / "nowhere.pth"))
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match="text.pth"):
        original_checkpoints.read(tmp_path / "text.pth")

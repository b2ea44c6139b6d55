"""Public configs of the CoOp family: the keys and values they set merge, with their meaning."""

import pytest
import torch
import yaml

import train
from dassl.config import get_cfg_default, public
from dassl.utils import UserError
from tuning import options

WORDS = "a photo of a"
# What every trainer file of CoOp, CoCoOp, KgCoOp, MaPLe, PromptSRC, VPT and DePT sets.
COMMON = {
    "DATALOADER.TEST.BATCH_SIZE": 100,
    "DATALOADER.NUM_WORKERS": 8,
    "INPUT.SIZE": (224, 224),
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
    "INPUT.PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
    "INPUT.TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"],
    "OPTIM.NAME": "sgd",
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": "1e-5",
    "MODEL.BACKBONE.NAME": "ViT-B/16",
}


def schedule(batch, lr, epochs, frequency=20, **more):
    return {
        "DATALOADER.TRAIN_X.BATCH_SIZE": batch,
        "OPTIM.LR": lr,
        "OPTIM.MAX_EPOCH": epochs,
        "TRAIN.PRINT_FREQ": frequency,
        **more,
    }


def node(name, **values):
    return {f"TRAINER.{name}.{key}": value for key, value in values.items()}


def prompts(name, n, depth_vision, depth_text, **more):
    depths = {"PROMPT_DEPTH_VISION": depth_vision, "PROMPT_DEPTH_TEXT": depth_text}
    n_ctx = {"N_CTX_VISION": n[0], "N_CTX_TEXT": n[1]}
    return node(name, **n_ctx, CTX_INIT=WORDS, PREC="fp16", **depths, **more)


def src(depth, mean, std):
    losses = {"TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, "GPA_MEAN": mean, "GPA_STD": std}
    return prompts("PROMPTSRC", (4, 4), depth, depth, **losses)


def cocoop(n, words=""):
    return node("COCOOP", N_CTX=n, CTX_INIT=words, PREC="fp16")


def maple(depth):
    return node("MAPLE", N_CTX=2, CTX_INIT=WORDS, PREC="fp16", PROMPT_DEPTH=depth)


COOP = {"CTX_INIT": WORDS, "N_CTX": 4, "CSC": False, "CLASS_TOKEN_POSITION": "end"}
VPT8 = node("VPT", N_CTX_VISION=8, CTX_INIT=WORDS, PREC="fp16", PROMPT_DEPTH_VISION=12)
SAME = {}
VNET = {
    "OPTIM_VNET.NAME": "sgd",
    "OPTIM_VNET.LR": 0.00025,
    "OPTIM_VNET.MAX_EPOCH": 10,
    "OPTIM_VNET.LR_SCHEDULER": "cosine",
    "OPTIM_VNET.WARMUP_EPOCH": 1,
    "OPTIM_VNET.WARMUP_TYPE": "constant",
    "OPTIM_VNET.WARMUP_CONS_LR": 1e-6,
}
UNUSED = {
    **{"N_CTX_TEXT": 4, "CTX_INIT": WORDS, "PROMPT_DEPTH_TEXT": 9, "TEACHER_NAME": "ViT-L/14"},
    **{"PROJECT_LAYER": 2, "CE_WEIGHT": 0.0},
}
FOUR_WORDS = {"CTX_INIT": WORDS, "N_CTX": 4}
# repository and file → (our trainer, what it sets, what that is here where it is something else)
SPLE = {
    "SPLE.SPLE_TRAINER.SPLE_INIT": True,
    "SPLE.SPLE_TRAINER.SPLE_BASE_TRAIN": True,
    "SPLE.BACK_CKPT_PATH": "output/CoOp/seed1",
    "SPLE.BACK_CKPT_EPOCH": 50,
    "SPLE.INFER_TOPK": 8,
    "SPLE.INFER_NONREPEAT": True,
    "SPLE.PIC_LIB": "DATA/SPLE_database/SPLE_Caltech101.json",
    "SPLE.STACK.MODE": "converse",
    "SPLE.STACK.WEIGHT": 0.2,
    "SPLE.STACK.WEIGHT_FOR_NEW": 0.0,
    "SPLE.STACK.LOOP_DEPTH": 0,
}
FILES = {
    "CoOp ep50": ("CoOp", schedule(32, 0.002, 50, 5), SAME),
    "CoOp ep100": ("CoOp", schedule(32, 0.002, 100, 5), SAME),
    "CoOp ep200": ("CoOp", schedule(32, 0.002, 200, 5), SAME),
    "CoOp RN101": (
        "CoOp",
        schedule(32, 0.002, 50, 5, **{"MODEL.BACKBONE.NAME": "RN101"}),
        SAME,
    ),
    "CoOp ep50 words": (
        "CoOp",
        schedule(32, 0.002, 50, 5) | node("COOP", CTX_INIT=WORDS),
        node("COOP", **FOUR_WORDS),
    ),
    "CoOp zero-shot": ("ZeroshotCLIP", schedule(32, 0.002, 200, 5), SAME),
    "CoCoOp 4 words": ("CoCoOp", schedule(1, 0.002, 10) | cocoop(4, WORDS), SAME),
    "CoCoOp 4": ("CoCoOp", schedule(1, 0.002, 10) | cocoop(4), SAME),
    "CoCoOp 8": ("CoCoOp", schedule(1, 0.002, 10) | cocoop(8), SAME),
    "CoCoOp 16": ("CoCoOp", schedule(1, 0.002, 10) | cocoop(16), SAME),
    "KgCoOp CoCoOp": (
        "CoCoOp",
        schedule(1, 0.002, 50) | cocoop(16, True),
        node("COCOOP", **FOUR_WORDS),
    ),
    "KgCoOp": (
        "KgCoOp",
        schedule(128, 0.002, 100, 5) | node("COOP", CTX_INIT=True),
        node("COOP", **FOUR_WORDS),
    ),
    "KgCoOp CoOp": (
        "CoOp",
        schedule(32, 0.002, 100, 5) | node("COOP", CTX_INIT=True),
        node("COOP", **FOUR_WORDS),
    ),
    "KgCoOp ProGrad": (
        "CoOp",
        schedule(32, 0.002, 100, 5)
        | node("COOP", CTX_INIT=True)
        | {"LOSS.NAME": "prograd", "LOSS.T": 1.0},
        node("COOP", **FOUR_WORDS) | {"LOSS.NAME": None, "LOSS.T": None},
    ),
    "MaPLe": ("MaPLe", schedule(4, 0.0035, 5) | maple(9), SAME),
    "MaPLe transfer": ("MaPLe", schedule(4, 0.0026, 2) | maple(3), SAME),
    "MMA": (
        "MMA",
        schedule(16, 0.0015, 5, **{"OPTIM.WARMUP_EPOCH": 0, "OPTIM.WARMUP_TYPE": "linear"})
        | node("MMADAPTER", TEXT_CTX_INIT=WORDS, ADAPTER_START=5, ADAPTER_END=12)
        | node("MMADAPTER", ADAPTER_DIM=32, ADAPTER_SCALE=0.001, PREC="amp"),
        SAME,
    ),
    "MMRL": (
        "MMRL",
        schedule(4, 0.001, 10, **{"OPTIM.NAME": "adamw", "INPUT.RRCROP_SCALE": (0.5, 1)})
        | node("MMRL", ALPHA=0.7, REG_WEIGHT=1.0, N_REP_TOKENS=5, REP_DIM=512, PREC="amp")
        | node("MMRL", REP_LAYERS=[6, 7, 8, 9, 10, 11, 12])
        | {"TASK": "B2N"},
        {"TASK": None},
    ),
    "MMRL++": (
        "MMRLpp",
        schedule(32, 0.002, 100, **{"OPTIM.NAME": "adamw"})
        | node("MMRLpp", ALPHA=0.7, BETA=0.9, REG_WEIGHT=1.0, N_REP_TOKENS=5, REP_DIM=512)
        | node("MMRLpp", PREC="amp", PROJ_LORA_DIM=64, RES_LORA_DIM=4),
        SAME,
    ),
    "MaPLe VPT": ("VPT", schedule(4, 0.0025, 5) | VPT8, SAME),
    "MaPLe IVLP": (
        "PromptSRC",
        schedule(4, 0.0035, 5) | prompts("IVLP", (2, 2), 12, 12),
        dict.fromkeys(prompts("IVLP", (2, 2), 12, 12)),
    ),
    "MaPLe language only": (
        "PromptSRC",
        schedule(4, 0.0025, 5) | prompts("IVLP", (0, 4), 0, 12),
        dict.fromkeys(prompts("IVLP", (0, 4), 0, 12)),
    ),
    "PromptSRC": ("PromptSRC", schedule(4, 0.0025, 20) | src(9, 15, 1), SAME),
    "PromptSRC transfer": ("PromptSRC", schedule(4, 0.0025, 20) | src(3, 6, 10), SAME),
    "PromptSRC few-shot": ("PromptSRC", schedule(4, 0.0025, 50) | src(9, 30, 30), SAME),
    "DePT CoOp": ("DePT_CoOp", schedule(4, 0.0035, 10), SAME),
    "DePT CoCoOp": ("DePT_CoCoOp", schedule(1, 0.002, 10) | cocoop(4, WORDS), SAME),
    "DePT KgCoOp": (
        "DePT_KgCoOp",
        schedule(4, 0.0035, 10) | node("COOP", **COOP, ALPHA=1.0, W=2.0),
        node("COOP", ALPHA=None),
    ),
    "PRE": ("PRE", schedule(32, 0.002, 50, 5) | node("PRE", CTX_INIT=WORDS), SAME),
    "LASP": (
        "LASP",
        schedule(32, 0.032, 25, **{"OPTIM.WARMUP_EPOCH": 3, "DATALOADER.TEST.BATCH_SIZE": 32})
        | node("LASP", N_CTX=4, CTX_INIT=WORDS, PREC="amp", LASP_LOSS_WEIGHT=5.0, ENABLE=True)
        | node("LASP", ENABLE_CORRECTION=True, FINETUNE_VIT_LN=True)
        | node("LASP", LASP_PROMPTS=["{} texture.", "itap of a {}."]),
        SAME,
    ),
    "LASP all": (
        "LASP",
        schedule(32, 0.032, 25)
        | {"DATASET.INCLUDE_ALL_CLASSES": True}
        | node("LASP", ENABLE_IMPLICIT_OP="sum", TRAIN_W=True),
        {
            "DATASET.INCLUDE_ALL_CLASSES": None,
            **node("LASP", NEGATIVES="all", ENABLE_IMPLICIT_OP=None),
        },
    ),
    "CaPT CoOp": (
        "CaPT_CoOp",
        schedule(4, 0.0035, 10, 5) | node("COOP", CTX_INIT=WORDS) | node("UCP", SCALE=0.5),
        SAME,
    ),
    "CaPT KgCoOp": (
        "CaPT_KgCoOp",
        schedule(4, 0.0035, 10)
        | node("KGCOOP", CTX_INIT=WORDS, CLASS_TOKEN_POSITION="end", W=1.5)
        | {"TRAINER.UCP.DROPOUT": 0.0, "TRAINER.UCP.LOSS.SMOOTH": 0.001},
        node("COOP", **COOP, W=1.5)
        | dict.fromkeys(node("KGCOOP", CTX_INIT=0, CLASS_TOKEN_POSITION=0, W=0)),
    ),
    "DeCaPT": (
        "DePT_CaPT_KgCoOp",
        schedule(4, 0.0035, 10, **{"OPTIM.NEW_LR_MULT": 18.0})
        | {"TRAINER.UCP.SCALE": 0.9, "TRAINER.UCP.HIDDEN_DIM": 64},
        {"OPTIM.NEW_LR_MULT": None, "TRAINER.DEPT.LR_MULT": 18.0},
    ),
    "SkipT": (
        "SkipT",
        schedule(4, 2e-5, 20, 50, **{"OPTIM.NEW_LR": 5e-6})
        | node("SKIP", QUICK_BATCH_SIZE=128, TOP_RATIO=0.5, START_LAYER=6),
        {
            "OPTIM.NEW_LR": None,
            "TRAINER.SKIP.IMAGE_LR": 5e-6,
            "TRAINER.SKIP.QUICK_BATCH_SIZE": None,
        },
    ),
    "TCP": (
        "TCP",
        schedule(32, 0.002, 50, 5, **{"OPTIM.NAME": "adam", "DATALOADER.TEST.BATCH_SIZE": 500})
        | node("COOP", CTX_INIT=False, N_CTX=4, CSC=False, W=1.0, ALPHA=1.0),
        node("COOP", CTX_INIT="", ALPHA=None),
    ),
    "PromptKD": (
        "PromptKD",
        schedule(8, 0.005, 20)
        | node("PROMPTKD", N_CTX_VISION=4, PREC="fp16", PROMPT_DEPTH_VISION=9, KD_WEIGHT=1.0)
        | node("PROMPTKD", **UNUSED),
        dict.fromkeys(node("PROMPTKD", **UNUSED)),
    ),
    "DPC CoOp": (
        "DPC_CoOp",
        schedule(4, 0.002, 20, 5) | SPLE,
        dict.fromkeys(SPLE) | node("DPC", TOPK=8, WEIGHT=0.2, WEIGHT_FOR_NEW=0.0),
    ),
    "CoPrompt": (
        "CoPrompt",
        schedule(4, 0.0035, 8)
        | {"DATALOADER.K_TRANSFORMS": 2, "INPUT.TRANSFORMS": ["randaugment", "normalize"]}
        | node("CoPrompt", N_CTX=2, CTX_INIT=WORDS, PREC="fp16", PROMPT_DEPTH=9)
        | {"TRAINER.W": 0.5, "TRAINER.DISTILL": "mse"},
        {
            "TRAINER.W": None,
            "TRAINER.DISTILL": None,
            **node("CoPrompt", W=0.5, DISTILL="mse"),
        },
    ),
    "ProMetaR": (
        "ProMetaR",
        schedule(4, 0.0025, 10)
        | node("PROMETAR", N_CTX_VISION=4, N_CTX_TEXT=4, CTX_INIT=WORDS, PREC="fp16")
        | node("PROMETAR", PROMPT_DEPTH_VISION=9, PROMPT_DEPTH_TEXT=9)
        | VNET,
        dict.fromkeys(VNET),
    ),
    "DePT MaPLe": ("DePT_MaPLe", schedule(4, 0.0035, 10) | maple(9), SAME),
}


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *branch, key = name.split(".")
        place = tree
        for part in branch:
            place = place.setdefault(part, {})
        place[key] = str(value) if isinstance(value, tuple) else value
    return tree


def merged(trainer, *words):
    return options.setup_cfg(options.parse_args(["--trainer", trainer, *words]))


def at(cfg, name):
    """The value at a dotted key; None where there is no such key."""
    for part in name.split("."):
        if part not in cfg:
            return None
        cfg = cfg[part]
    return cfg


def again(cfg, tmp_path):
    """What config.yaml of that run says."""
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return yaml.safe_load((tmp_path / "config.yaml").read_text())


@pytest.mark.parametrize("name", FILES)
def test_public_files_merge_with_their_meaning(tmp_path, name):
    trainer, content, here = FILES[name]
    content = COMMON | content
    (tmp_path / "public.yaml").write_text(yaml.safe_dump(nested(content)))
    cfg = merged(trainer, "--config-file", str(tmp_path / "public.yaml"))
    for key, value in (content | here).items():
        value = 1e-5 if value == "1e-5" else value
        found = at(cfg, key)
        assert (list(found) if isinstance(found, tuple) else found) == (
            list(value) if isinstance(value, tuple) else value
        ), key
        recorded = at(again(cfg, tmp_path), key)
        assert recorded == found or isinstance(found, tuple), key
    # One line for each option that is something else here, and none for the others.
    changed = {key for key, value in here.items() if key in content and content[key] != value}
    changed -= {key for key in changed if key.endswith("N_CTX")}
    assert {line.split(" ")[0] for line in cfg.remarks} == changed


@pytest.mark.parametrize(
    ("words", "here"),
    [
        (["TRAINER.LINEAR_PROBE.WEIGHT", "0.5"], {"WEIGHT": 0.5}),
        (["TRAINER.LINEAR_PROBE.TYPE", "similarity"], {"HEAD": "similarity"}),
        (["TRAINER.LINEAR_PROBE.TEST_TIME_FUSION", "False"], {"FUSION": "none"}),
        (["TRAINER.LINEAR_PROBE.TEST_TIME_FUSION", "True"], {"FUSION": "logits"}),
        (["TRAINER.FILM.LINEAR_PROBE", "False"], {"CWT": "none"}),
        (["TRAINER.FILM.LINEAR_PROBE", "True"], {"CWT": "separate"}),
        (["OPTIM.LR_EXP", "5"], {"LR_MULT": 5.0}),
        (["TRAINER.NAMES_TO_UPDATE", "['prompt_learner', 'linear_probe']"], {"CWT": "none"}),
        (["TRAINER.NAMES_TO_UPDATE", "['prompt_learner', 'linear_probe', 'film']"], {}),
    ],
)
def test_depts_own_names(tmp_path, words, here):
    usual = merged("DePT_CoOp").TRAINER.DEPT
    cfg = merged("DePT_CoOp", *words)
    assert {**usual, **here} == cfg.TRAINER.DEPT
    (line,) = cfg.remarks
    assert line.startswith(f"{words[0]} ") and ("has no effect" in line) == (not here)
    assert again(cfg, tmp_path)["TRAINER"]["DEPT"] == {**usual, **here}


def test_the_later_of_two_names_wins_and_is_what_is_said():
    cfg = merged("DePT_CoOp", "TRAINER.LINEAR_PROBE.WEIGHT", "0.5", "TRAINER.DEPT.WEIGHT", "0.6")
    assert cfg.TRAINER.DEPT.WEIGHT == 0.6 and cfg.remarks == []
    cfg = merged("DePT_CoOp", "TRAINER.DEPT.WEIGHT", "0.6", "TRAINER.LINEAR_PROBE.WEIGHT", "0.5")
    assert cfg.TRAINER.DEPT.WEIGHT == 0.5
    assert cfg.remarks == ["TRAINER.LINEAR_PROBE.WEIGHT 0.5: here TRAINER.DEPT.WEIGHT 0.5"]


@pytest.mark.parametrize(
    ("trainer", "key", "value", "words", "vectors"),
    [
        ("CoOp", "COOP", "True", WORDS, 4),
        ("CoOp", "COOP", "False", "", 16),
        ("CoOp", "COOP", "two words", "two words", 2),
        ("CoOp", "COOP", "101", "101", 1),
        ("KgCoOp", "COOP", "True", WORDS, 4),
        ("KgCoOp", "COOP", "two_words", "two_words", 2),
        ("KgCoOp", "COOP", None, WORDS, 4),
        ("DePT_KgCoOp", "COOP", None, WORDS, 4),
        ("KgCoOp", "COOP", "False", None, 16),
        ("CoCoOp", "COCOOP", "True", WORDS, 4),
        ("CoCoOp", "COCOOP", "False", "", 4),
        ("MaPLe", "MAPLE", "False", "", 2),
        ("MaPLe", "MAPLE", "True", WORDS, 2),
    ],
)
def test_initial_words_are_recorded_as_used(tmp_path, trainer, key, value, words, vectors):
    given = [] if value is None else [f"TRAINER.{key}.CTX_INIT", value]
    cfg = merged(trainer, *given)
    used = cfg.TRAINER[key]
    assert (words, vectors) == (used.CTX_INIT, used.N_CTX)
    recorded = again(cfg, tmp_path)["TRAINER"][key]
    assert (recorded["CTX_INIT"], recorded["N_CTX"]) == (words, vectors)
    once_more = merged(trainer, "--config-file", str(tmp_path / "config.yaml"))
    assert once_more.TRAINER[key] == used


@pytest.mark.parametrize("value", ["True", "False"])
def test_vpt_and_promptsrc_take_true_and_false(value):
    for name in ("VPT", "PROMPTSRC"):
        cfg = merged("VPT", f"TRAINER.{name}.CTX_INIT", value)
        assert {"True": WORDS, "False": ""}[value] == cfg.TRAINER[name].CTX_INIT


def test_kgcoop_starts_from_its_words_unless_it_is_told_not_to(make_trainer):
    embed = make_trainer("KgCoOp").method.encoders.text
    ids = embed.token_ids(WORDS)
    context = make_trainer("KgCoOp", TRAINER__COOP__N_CTX=16).method.context.ctx
    assert torch.equal(context, embed.embed(ids))
    told = make_trainer("KgCoOp", TRAINER__COOP__CTX_INIT=False, TRAINER__COOP__N_CTX=16)
    assert told.method.context.ctx.shape[0] == 16
    assert 0.017 < told.method.context.ctx.std().item() < 0.023


def test_a_run_says_what_became_of_public_options(command, tmp_path):
    train.main(command("DePT_CoOp", "TRAINER.LINEAR_PROBE.WEIGHT", "0.5", TRAINER__COOP__ALPHA=1.0))
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert lines.count("TRAINER.LINEAR_PROBE.WEIGHT 0.5: here TRAINER.DEPT.WEIGHT 0.5") == 1
    assert sum(line.startswith("TRAINER.COOP.ALPHA 1.0 has no effect: ") for line in lines) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TRAINER.NAMES_TO_UPDATE", "['film']"], "linear_probe and prompt_learner can't be left"),
        (["TRAINER.NAMES_TO_UPDATE", "['image_encoder']"], "takes a list of film, linear_probe"),
        (["TRAINER.LINEAR_PROBE", "3"], "TRAINER.LINEAR_PROBE is a group"),
        (["TRAINER.LINEAR_PROBE.WIEGHT", "1"], "did you mean 'TRAINER.LINEAR_PROBE.WEIGHT'"),
        (["TRAINER.LINEAR_PROBE.WEIGHT", "a"], "WEIGHT: TRAINER.DEPT.WEIGHT takes a value of type"),
    ],
)
def test_mistakes_in_public_options(words, message):
    with pytest.raises(UserError, match=message):
        merged("DePT_CoOp", *words)


def test_a_key_of_the_tree_is_not_taken_for_a_public_name():
    """A trainer file for Dassl may add a key that stands in the table, and mean its own."""
    cfg = get_cfg_default()
    public(cfg, "OPTIM.LR_EXP", "OPTIM.LR")
    cfg.OPTIM.LR_EXP = 6.5
    cfg.merge_from_list(["OPTIM.LR_EXP", "2.0"])
    assert (cfg.OPTIM.LR_EXP, cfg.OPTIM.LR, cfg.remarks) == (2.0, 0.0003, [])
    assert "OPTIM.LR_EXP" in cfg.clone().public_options

"""Every number of the papers, read through the configs that `scripts/run_protocol.py` uses.

Each table was written from the papers and the original code, not from ours.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer
from experiments.protocols import PROTOCOLS, Plan
from tuning.options import parse_args, setup_cfg

trainers.modules()
METHODS = ("CoOp", "CoCoOp", "KgCoOp", "MaPLe", "VPT", "CLIPAdapter", "PromptSRC")
NEIGHBORS = (
    "PRE",
    "LASP",
    "EPT",
    "LAMP",
    "SPT",
    "IPT",
    "InfoPrompt",
    "StablePT",
    "MP2",
    "RLPrompt",
)  # named beside DePT
COMPARED = (
    "TCP",
    "ProMetaR",
    "CaPT_CoOp",
    "CaPT_KgCoOp",
    "CoPrompt",
    "CoPromptTemplates",
    "SkipT",
)  # what people compare with now
TOWERS = ("MMA", "MMRL", "MMRLpp", "CLIP_LoRA")  # their starts: in tests of their own
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")
AROUND = ("CoOp", "KgCoOp", "MaPLe", "PromptSRC")  # what DPC is around
PARALLEL = tuple(f"DPC_{name}" for name in AROUND)
BARE = ("RLPrompt",)  # no loss that DePT could be around
WRAPPED = tuple(
    f"DePT_{name}" for name in METHODS + NEIGHBORS + COMPARED + PARALLEL if name not in BARE
)


def config(trainer: str, protocol: str = "base_to_new", dataset: str = "caltech101", name=""):
    """The config of the runs that a protocol plans for a data set (a transfer: of its source)."""
    plan = Plan(Path("data"), Path("output"), name)
    chains = PROTOCOLS[protocol].chains(plan, (trainer,), (dataset,), (1,), (16,))
    job = chains[-1].jobs[0]
    return setup_cfg(parse_args(list(job.arguments)))


def value(cfg, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return tuple(cfg) if isinstance(cfg, (list, tuple)) else cfg


# What every run on CLIP shares.
SHARED = {
    "MODEL.BACKBONE.NAME": "ViT-B/16",
    "INPUT.SIZE": (224, 224),
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.PIXEL_MEAN": (0.48145466, 0.4578275, 0.40821073),
    "INPUT.PIXEL_STD": (0.26862954, 0.26130258, 0.27577711),
    "INPUT.TRANSFORMS": ("random_resized_crop", "random_flip", "normalize"),
    "INPUT.RRCROP_SCALE": (0.08, 1.0),
    "INPUT.NO_TRANSFORM": False,
    "DATALOADER.TEST.BATCH_SIZE": 100,
    "DATALOADER.TRAIN_X.SAMPLER": "RandomSampler",
    "DATALOADER.TEST.SAMPLER": "SequentialSampler",
    "DATALOADER.K_TRANSFORMS": 1,
    "OPTIM.NAME": "sgd",
    "OPTIM.MOMENTUM": 0.9,
    "OPTIM.WEIGHT_DECAY": 5e-4,
    "OPTIM.SGD_DAMPNING": 0.0,
    "OPTIM.SGD_NESTEROV": False,
    "OPTIM.STAGED_LR": False,
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-5,
    "OPTIM.WARMUP_RECOUNT": True,
    "TEST.EVALUATOR": "Classification",
    "TEST.FINAL_MODEL": "last_step",
    "TEST.SPLIT": "test",
    "DATASET.NUM_SHOTS": 16,
}
EP10 = {"DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.LR": 0.0035, "OPTIM.MAX_EPOCH": 10}
SRC_SCHEDULE = {"DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.LR": 0.0025}
OF_METHOD = {
    "CoOp": {
        **EP10,
        "TRAINER.COOP.N_CTX": 16,
        "TRAINER.COOP.CTX_INIT": "",
        "TRAINER.COOP.CSC": False,
        "TRAINER.COOP.CLASS_TOKEN_POSITION": "end",
        "TRAINER.COOP.PREC": "fp16",
    },
    "CoCoOp": {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 1,
        "OPTIM.LR": 0.002,
        "OPTIM.MAX_EPOCH": 10,
        "TRAINER.COCOOP.N_CTX": 4,
        "TRAINER.COCOOP.CTX_INIT": "a photo of a",
        "TRAINER.COCOOP.PREC": "fp16",
    },
    "KgCoOp": {
        **EP10,
        "TRAINER.COOP.W": 2.0,
        "TRAINER.COOP.CSC": False,
        "TRAINER.COOP.CLASS_TOKEN_POSITION": "end",
        "TRAINER.COOP.PREC": "fp16",
    },
    "MaPLe": {
        **EP10,
        "TRAINER.MAPLE.N_CTX": 2,
        "TRAINER.MAPLE.CTX_INIT": "a photo of a",
        "TRAINER.MAPLE.PROMPT_DEPTH": 9,
        "TRAINER.MAPLE.PREC": "fp16",
    },
    "VPT": {
        **EP10,
        "TRAINER.VPT.N_CTX_VISION": 8,
        "TRAINER.VPT.PROMPT_DEPTH_VISION": 12,
        "TRAINER.VPT.CTX_INIT": "a photo of a",
        "TRAINER.VPT.PREC": "fp16",
    },
    "CLIPAdapter": {
        **EP10,
        "TRAINER.CLIP_ADAPTER.RATIO": 0.2,
        "TRAINER.CLIP_ADAPTER.REDUCTION": 4,
        "TRAINER.CLIP_ADAPTER.PREC": "fp16",
    },
    "PromptSRC": {
        **SRC_SCHEDULE,
        "OPTIM.MAX_EPOCH": 20,
        "TRAINER.PROMPTSRC.N_CTX_TEXT": 4,
        "TRAINER.PROMPTSRC.N_CTX_VISION": 4,
        "TRAINER.PROMPTSRC.CTX_INIT": "a photo of a",
        "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 9,
        "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 9,
        "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT": 25.0,
        "TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT": 10.0,
        "TRAINER.PROMPTSRC.GPA_MEAN": 15.0,
        "TRAINER.PROMPTSRC.GPA_STD": 1.0,
        "TRAINER.PROMPTSRC.PREC": "fp16",
    },
    "PRE": {
        **EP10,
        "TRAINER.PRE.N_CTX": 4,
        "TRAINER.PRE.CTX_INIT": "a photo of a",
        "TRAINER.PRE.ENCODER": "LSTM1",
        "TRAINER.PRE.RESIDUAL": True,
        "TRAINER.PRE.SEPARATE": False,
        "TRAINER.PRE.CLASS_TOKEN_POSITION": "end",
        "TRAINER.PRE.PREC": "fp16",
    },
    "LASP": {
        **EP10,
        "TRAINER.LASP.N_CTX": 4,
        "TRAINER.LASP.CTX_INIT": "a photo of a",
        "TRAINER.LASP.ENABLE": True,
        "TRAINER.LASP.LASP_LOSS_WEIGHT": 5.0,
        "TRAINER.LASP.NAMES": "base",
        "TRAINER.LASP.NEGATIVES": "base",
        "TRAINER.LASP.NOISE": 0.05,
        "TRAINER.LASP.ENABLE_CORRECTION": True,
        "TRAINER.LASP.TRAIN_W": True,
        "TRAINER.LASP.FINETUNE_VIT_LN": True,
        "TRAINER.LASP.GROUPS": 1,
        "TRAINER.LASP.CLIP_NORM": 1.0,
        "TRAINER.LASP.PREC": "fp16",
    },
    "EPT": {
        **EP10,
        "TRAINER.EPT.N_CTX": 4,
        "TRAINER.EPT.CTX_INIT": "a photo of a",
        "TRAINER.EPT.TOKENS": 8,
        "TRAINER.EPT.RANK": 4,
        "TRAINER.EPT.FUSION_WIDTH": 32,
        "TRAINER.EPT.SPACES": 4,
        "TRAINER.EPT.SPACE_WIDTH": 16,
        "TRAINER.EPT.SHIFT_LR_MULT": 2.0,
        "TRAINER.EPT.PREC": "fp16",
    },
    "LAMP": {
        **EP10,
        "TRAINER.LAMP.N_CTX": 4,
        "TRAINER.LAMP.CTX_INIT": "a photo of a",
        "TRAINER.LAMP.POOL": 4,
        "TRAINER.LAMP.RANK": 4,
        "TRAINER.LAMP.Q_LR_MULT": 5.0,
        "TRAINER.LAMP.PREC": "fp16",
    },
    "SPT": {
        **EP10,
        "TRAINER.VPT.N_CTX_VISION": 8,
        "TRAINER.VPT.PROMPT_DEPTH_VISION": 12,
        "TRAINER.VPT.CTX_INIT": "a photo of a",
        "TRAINER.VPT.PREC": "fp16",
        "TRAINER.SPT.INIT": "tokens",
        "TRAINER.SPT.IMAGES": 2048,
    },
    "IPT": {
        **EP10,
        "TRAINER.IPT.TOKENS": 8,
        "TRAINER.IPT.HIDDEN": 64,
        "TRAINER.IPT.LAYER": -1,
        "TRAINER.IPT.PLACE": "insert",
        "TRAINER.IPT.CTX_INIT": "a photo of a",
        "TRAINER.IPT.PREC": "fp16",
    },
    "InfoPrompt": {
        **EP10,
        "TRAINER.INFOPROMPT.N_CTX": 4,
        "TRAINER.INFOPROMPT.CTX_INIT": "a photo of a",
        "TRAINER.INFOPROMPT.HEAD_WEIGHT": 0.1,
        "TRAINER.INFOPROMPT.HEAD_NEGATIVES": 64,
        "TRAINER.INFOPROMPT.FEATURE_WEIGHT": 0.2,
        "TRAINER.INFOPROMPT.FEATURE_DRAWS": 4,
        "TRAINER.INFOPROMPT.NOISE": 0.1,
        "TRAINER.INFOPROMPT.DECAY": 0.0,
        "TRAINER.INFOPROMPT.PREC": "fp16",
    },
    "StablePT": {
        **EP10,
        "TRAINER.STABLEPT.N_CTX": 10,
        "TRAINER.STABLEPT.CTX_INIT": "",
        "TRAINER.STABLEPT.INIT_STD": 1.0,
        "TRAINER.STABLEPT.HEADS": 4,
        "TRAINER.STABLEPT.CONTRAST_WEIGHT": 1.0,
        "TRAINER.STABLEPT.TEMPERATURE": 0.3,
        "TRAINER.STABLEPT.PREC": "fp16",
    },
    "MP2": {
        **EP10,
        "TRAINER.MP2.N_CTX": 4,
        "TRAINER.MP2.CTX_INIT": "a photo of a",
        "TRAINER.MP2.MODULES": 8,
        "TRAINER.MP2.RANK": 64,
        "TRAINER.MP2.FACTORED": False,
        "TRAINER.MP2.TEMPERATURE": 1.0,
        "TRAINER.MP2.ROUTER_EPOCHS": 5,
        "TRAINER.MP2.THEN": "prompts",
        "TRAINER.MP2.ROUTER_LR_MULT": 10.0,
        "TRAINER.MP2.START_TASK": -1,
        "TRAINER.MP2.PREC": "fp16",
    },
    "TCP": {
        **EP10,
        "TRAINER.COOP.N_CTX": 4,
        "TRAINER.COOP.CTX_INIT": "",
        "TRAINER.COOP.PREC": "fp16",
        "TRAINER.TCP.W": 8.0,
        "TRAINER.TCP.LAYER": 8,
        "TRAINER.TCP.REDUCTION": 4,
    },
    "MMA": {
        **EP10,
        "TRAINER.MMADAPTER.TEXT_CTX_INIT": "a photo of a",
        "TRAINER.MMADAPTER.ADAPTER_START": 5,
        "TRAINER.MMADAPTER.ADAPTER_END": 12,
        "TRAINER.MMADAPTER.ADAPTER_DIM": 32,
        "TRAINER.MMADAPTER.ADAPTER_SCALE": 0.001,
        "TRAINER.MMADAPTER.PREC": "fp16",
    },
    **{
        name: {
            **EP10,
            f"TRAINER.{name}.ALPHA": 0.7,
            f"TRAINER.{name}.REG_WEIGHT": 1.0,
            f"TRAINER.{name}.N_REP_TOKENS": 5,
            f"TRAINER.{name}.REP_LAYERS": (6, 7, 8, 9, 10, 11, 12),
            f"TRAINER.{name}.REP_DIM": 512,
            f"TRAINER.{name}.PREC": "fp16",
        }
        for name in ("MMRL", "MMRLpp")
    },
    "CLIP_LoRA": {
        **EP10,
        "TRAINER.CLIP_LORA.R": 2,
        "TRAINER.CLIP_LORA.ALPHA": 1.0,
        "TRAINER.CLIP_LORA.DROPOUT_RATE": 0.25,
        "TRAINER.CLIP_LORA.ENCODER": "both",
        "TRAINER.CLIP_LORA.POSITION": "all",
        "TRAINER.CLIP_LORA.PARAMS": ("q", "k", "v"),
        "TRAINER.CLIP_LORA.N_ITERS": 0,
        "TRAINER.CLIP_LORA.PREC": "fp16",
    },
    "ProMetaR": {
        **EP10,
        "TRAINER.PROMETAR.N_CTX_TEXT": 4,
        "TRAINER.PROMETAR.N_CTX_VISION": 4,
        "TRAINER.PROMETAR.CTX_INIT": "a photo of a",
        "TRAINER.PROMETAR.PROMPT_DEPTH_TEXT": 9,
        "TRAINER.PROMETAR.PROMPT_DEPTH_VISION": 9,
        "TRAINER.PROMETAR.TEXT_LOSS_WEIGHT": 50.0,
        "TRAINER.PROMETAR.IMAGE_LOSS_WEIGHT": 20.0,
        "TRAINER.PROMETAR.META": "loss",
        "TRAINER.PROMETAR.ADAPT_LR": 0.0005,
        "TRAINER.PROMETAR.LR_RATIO": 0.0005,
        "TRAINER.PROMETAR.FAST_ADAPTATION": False,
        "TRAINER.PROMETAR.MIXUP_ALPHA": 0.5,
        "TRAINER.PROMETAR.MIXUP_BETA": 0.5,
        "TRAINER.PROMETAR.DIM_RATE": 8,
        "TRAINER.PROMETAR.PREC": "fp16",
    },
    "CaPT_CoOp": {
        **EP10,
        "TRAINER.COOP.CTX_INIT": "a photo of a",
        "TRAINER.UCP.SCALE": 0.5,
        "TRAINER.UCP.HIDDEN_DIM": 32,
        "TRAINER.UCP.DROPOUT": 0.1,
        "TRAINER.UCP.LOSS.SMOOTH": 0.0031,
        "TRAINER.UCP.LOSS.USE_SIM": True,
        "TRAINER.UCP.PREC": "fp16",
    },
    "CaPT_KgCoOp": {
        **EP10,
        "TRAINER.COOP.CTX_INIT": "a photo of a",
        "TRAINER.COOP.W": 1.5,
        "TRAINER.UCP.SCALE": 1.0,
        "TRAINER.UCP.HIDDEN_DIM": 32,
        "TRAINER.UCP.DROPOUT": 0.0,
        "TRAINER.UCP.LOSS.SMOOTH": 0.001,
        "TRAINER.UCP.LOSS.USE_SIM": True,
    },
    "RLPrompt": {
        **EP10,
        "OPTIM.NAME": "adam",
        "OPTIM.LR": 0.0003,
        "OPTIM.WEIGHT_DECAY": 0.0,
        "TRAINER.RLPROMPT.N_WORDS": 5,
        "TRAINER.RLPROMPT.SEARCH": "policy",
        "TRAINER.RLPROMPT.PROMPTS": 16,
        "TRAINER.RLPROMPT.TOP_K": 256,
        "TRAINER.RLPROMPT.WHOLE_WORDS": True,
        "TRAINER.RLPROMPT.HIDDEN": 2048,
        "TRAINER.RLPROMPT.RIGHT": 200.0,
        "TRAINER.RLPROMPT.WRONG": 180.0,
        "TRAINER.RLPROMPT.REWARD_SCALE": 5.0,
        "TRAINER.RLPROMPT.POLYAK": 0.001,
        "TRAINER.RLPROMPT.CLIP_NORM": 5.0,
        "TRAINER.RLPROMPT.PREC": "fp16",
    },
    "CoPrompt": {
        **EP10,
        "DATALOADER.K_TRANSFORMS": 2,
        "TRAINER.CoPrompt.N_CTX": 2,
        "TRAINER.CoPrompt.CTX_INIT": "a photo of a",
        "TRAINER.CoPrompt.PROMPT_DEPTH": 9,
        "TRAINER.CoPrompt.SENTENCES": "",
        "TRAINER.CoPrompt.W": 1.0,
        "TRAINER.CoPrompt.DISTILL": "cosine",
        "TRAINER.CoPrompt.IMAGE_RATIO": 0.1,
        "TRAINER.CoPrompt.TEXT_RATIO": 0.2,
        "TRAINER.CoPrompt.PREC": "fp16",
    },
    "SkipT": {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "DATALOADER.TRAIN_X.SAMPLER": "RandomClassSampler",
        "DATALOADER.TRAIN_X.N_INS": 4,
        "OPTIM.LR": 2e-5,
        "OPTIM.MAX_EPOCH": 10,
        "OPTIM.WARMUP_CONS_LR": 1e-6,
        "TRAINER.SKIP.START_LAYER": 6,
        "TRAINER.SKIP.TOP_RATIO": 0.5,
        "TRAINER.SKIP.MAX_TOP": 50,
        "TRAINER.SKIP.LAMBDA": 0.3,
        "TRAINER.SKIP.IMAGE_LR": 5e-6,
        "TRAINER.SKIP.PREC": "fp16",
    },
    "ZeroshotCLIP": {"TRAINER.ZEROSHOT.PREC": "fp16"},
    "ZeroshotCLIP2": {"TRAINER.ZEROSHOT.PREC": "fp16"},
}
OF_METHOD["CoPromptTemplates"] = OF_METHOD["CoPrompt"]
OF_METHOD["MMRLpp"] |= {
    "TRAINER.MMRLpp.BETA": 0.9,
    "TRAINER.MMRLpp.RES_LORA_DIM": 4,
    "TRAINER.MMRLpp.PROJ_LORA_DIM": 64,
}
DPC = {
    "TRAINER.DPC.WEIGHT": 0.5,
    "TRAINER.DPC.WEIGHT_FOR_NEW": 0.0,
    "TRAINER.DPC.TOPK": 8,
    "TRAINER.DPC.LR_MULT": 4.0,
    "TRAINER.DPC.REGULARIZE": False,
    "TRAINER.DPC.STAGE1": (),
}
OF_METHOD |= {f"DPC_{name}": OF_METHOD[name] | DPC for name in AROUND}
DEPT = {
    "TRAINER.DEPT.WEIGHT": 0.7,
    "TRAINER.DEPT.LR_MULT": 6.5,
    "TRAINER.DEPT.HEAD": "linear",
    "TRAINER.DEPT.CWT": "separate",
    "TRAINER.DEPT.ROWS": "both",
    "TRAINER.DEPT.FUSION": "logits",
}
# What a twin has otherwise.
OF_TWIN = {
    "DePT_CaPT_KgCoOp": {
        "TRAINER.DEPT.LR_MULT": 18.0,
        "TRAINER.UCP.SCALE": 0.9,
        "TRAINER.UCP.HIDDEN_DIM": 64,
        "TRAINER.UCP.DROPOUT": 0.1,
        "TRAINER.UCP.LOSS.SMOOTH": 0.0008,
    },
    "DePT_SkipT": {"TRAINER.DEPT.LR_MULT": 1137.5},
}


@pytest.mark.parametrize(
    "name", METHODS + NEIGHBORS + COMPARED + PARALLEL + TOWERS + WRAPPED + ZERO_SHOT
)
def test_base_to_new(name):
    cfg = config(name)
    expected = {**SHARED, **OF_METHOD[name.removeprefix("DePT_")]}
    expected |= DEPT | OF_TWIN.get(name, {}) if name in WRAPPED else {}
    assert {key: value(cfg, key) for key in expected} == expected


def test_every_trainer_is_in_the_tables():
    ours = {n for n in TRAINER_REGISTRY.registered_names() if not n.startswith("Elsewhere")}
    assert {*METHODS, *NEIGHBORS, *COMPARED, *PARALLEL, *WRAPPED, *ZERO_SHOT} <= ours


SRC_TRANSFER = {
    **SRC_SCHEDULE,
    "OPTIM.MAX_EPOCH": 20,
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 3,
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 3,
    "TRAINER.PROMPTSRC.GPA_MEAN": 6.0,
    "TRAINER.PROMPTSRC.GPA_STD": 10.0,
}
SRC_FEW_SHOT = {
    **SRC_SCHEDULE,
    "OPTIM.MAX_EPOCH": 50,
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 9,
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 9,
    "TRAINER.PROMPTSRC.GPA_MEAN": 30.0,
    "TRAINER.PROMPTSRC.GPA_STD": 30.0,
}
SRC_LATE = {**SRC_FEW_SHOT, "TRAINER.PROMPTSRC.GPA_MEAN": 45.0, "TRAINER.PROMPTSRC.GPA_STD": 5.0}
LATE = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")
OTHER_SIX = ("imagenet", "caltech101", "oxford_pets", "food101", "sun397", "ucf101")
PROTOCOLS_OWN = [
    ("PromptSRC", "cross_dataset", "dtd", SRC_TRANSFER),
    ("PromptSRC", "domain_generalization", "imagenet_a", SRC_TRANSFER),
    *(("PromptSRC", "few_shot", name, SRC_LATE) for name in LATE),
    *(("PromptSRC", "few_shot", name, SRC_FEW_SHOT) for name in OTHER_SIX),
    ("CoOp", "cross_dataset", "dtd", EP10),
    ("CoOp", "few_shot", "dtd", EP10),
    ("KgCoOp", "few_shot", "dtd", {**EP10, "TRAINER.COOP.W": 2.0}),
    ("DPC_PromptSRC", "cross_dataset", "dtd", SRC_TRANSFER),
    ("DPC_PromptSRC", "few_shot", "dtd", SRC_LATE),
    ("DPC_PromptSRC", "few_shot", "ucf101", SRC_FEW_SHOT),
]


@pytest.mark.parametrize("prefix", ["", "DePT_"])
@pytest.mark.parametrize("method,protocol,dataset,expected", PROTOCOLS_OWN)
def test_protocols_with_numbers_of_their_own(prefix, method, protocol, dataset, expected):
    cfg = config(f"{prefix}{method}", protocol, dataset)
    assert {key: value(cfg, key) for key in expected} == expected
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "all"


def schedule(batch: int, lr: float, epochs: int, **more) -> dict:
    numbers = {"DATALOADER.TRAIN_X.BATCH_SIZE": batch, "OPTIM.LR": lr, "OPTIM.MAX_EPOCH": epochs}
    return {**SHARED, **numbers, **more}


OTHERS = [
    ("KgCoOp", "vit_b16_ep10_w8", {"TRAINER.COOP.W": 8.0}),
    # The originals' own schedules.
    ("VPT", "vit_b16_maple", schedule(4, 0.0025, 5)),
    ("MaPLe", "vit_b16_maple", schedule(4, 0.0035, 5, **{"TRAINER.MAPLE.PROMPT_DEPTH": 9})),
    (
        *("MaPLe", "vit_b16_maple_cross_dataset"),
        schedule(4, 0.0026, 2, **{"TRAINER.MAPLE.PROMPT_DEPTH": 3}),
    ),
    (
        *("TCP", "vit_b16_tcp"),
        schedule(
            *(32, 0.002, 50),
            **{"OPTIM.NAME": "adam", "OPTIM.ADAM_EPS": 1e-3, "DATALOADER.TEST.BATCH_SIZE": 500},
        ),
    ),
    ("KgCoOp", "vit_b16_kgcoop", schedule(128, 0.002, 100, **{"TRAINER.COOP.W": 8.0})),
    ("CoOp", "vit_b16_coop_ep50", schedule(32, 0.002, 50, **{"TRAINER.COOP.N_CTX": 16})),
    ("CoOp", "vit_b16_coop_ep100", schedule(32, 0.002, 100)),
    ("CoOp", "vit_b16_coop_ep200", schedule(32, 0.002, 200)),
    ("CoCoOp", "vit_b16_cocoop", schedule(1, 0.002, 10)),
    ("PromptSRC", "vit_b16_promptsrc", {**schedule(4, 0.0025, 20), **OF_METHOD["PromptSRC"]}),
    ("CoOp", "vit_b32_ep10", {**EP10, "MODEL.BACKBONE.NAME": "ViT-B/32"}),
    ("CoOp", "vit_l14_ep10", {**EP10, "MODEL.BACKBONE.NAME": "ViT-L/14"}),
    ("DePT_CoOp", "mini", {"INPUT.SIZE": (48, 48), "MODEL.BACKBONE.NAME": "TinyCLIP"}),
    ("DePT_PromptSRC", "mini", {"OPTIM.LR": 0.0025, "OPTIM.MAX_EPOCH": 20}),
    ("PromptSRC", "mini", {"OPTIM.LR": 0.0025, "OPTIM.MAX_EPOCH": 20}),
]


@pytest.mark.parametrize("trainer,name,expected", OTHERS)
def test_configs_by_name(trainer, name, expected):
    cfg = config(trainer, name=name)
    assert {key: value(cfg, key) for key in expected} == expected


def test_protocols_defaults():
    """The paper's data sets, seeds and shots."""
    eleven = {
        *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
        *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
    }
    for name in ("base_to_new", "few_shot", "lambda", "ablation", "zero_shot"):
        assert set(PROTOCOLS[name].datasets) == eleven, name
    assert set(PROTOCOLS["cross_dataset"].datasets) - {"imagenet"} == eleven - {"imagenet"}
    variants = {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}
    assert set(PROTOCOLS["domain_generalization"].datasets) - {"imagenet"} == variants
    for name, protocol in PROTOCOLS.items():
        assert protocol.seeds == ((1,) if name == "zero_shot" else (1, 2, 3)), name
        few = name in ("few_shot", "few_shot_adapters")
        assert protocol.shots == ((1, 2, 4, 8, 16) if few else (16,)), name


# Learning rates of the epochs, the published schedule: lr (1 + cos(π (e − 1) / T)) / 2 from the
# second epoch on, 1e-5 in the first for every group; the CAT head's group at 6.5 times the rate.
@pytest.mark.parametrize("name", METHODS + NEIGHBORS + COMPARED + WRAPPED)
def test_rates_of_every_epoch(name):
    cfg = config(name)
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": cfg.OPTIM.LR}]
    if name in WRAPPED:
        head = torch.zeros(1, requires_grad=True)
        groups.append({"params": [head], "lr": cfg.OPTIM.LR * cfg.TRAINER.DEPT.LR_MULT})
    optimizer = build_optimizer(None, cfg.OPTIM, groups)
    scheduler = build_lr_scheduler(optimizer, cfg.OPTIM)
    lr, epochs = {
        "CoCoOp": (0.002, 10),
        "PromptSRC": (0.0025, 20),
        "DPC_PromptSRC": (0.0025, 20),
        "RLPrompt": (0.0003, 10),
        "SkipT": (2e-5, 10),
    }.get(name.removeprefix("DePT_"), (0.0035, 10))
    for epoch in range(epochs):
        rate = lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
        mult = OF_TWIN.get(name, {}).get("TRAINER.DEPT.LR_MULT", 6.5)
        warm_up = 1e-6 if "SkipT" in name else 1e-5
        expected = [rate, rate * mult] if epoch else [warm_up, warm_up]
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx(expected[: len(groups)], rel=1e-9), f"epoch {epoch}"
        optimizer.step()
        scheduler.step()
    sgd = {"momentum": 0.9, "weight_decay": 5e-4}
    wanted = {"weight_decay": 0.0, "betas": (0.9, 0.999)} if name == "RLPrompt" else sgd
    assert all(wanted.items() <= group.items() for group in optimizer.param_groups)


# What a fresh parameter is: ("normal", standard deviation); ("linear", inputs): torch's own start
# of a Linear layer, uniform within ±1/√inputs; ("ids", …): the token embeddings of these ids
# ("a photo of a" is 320 1125 539 320); ("all", value). The tiny CLIP has d_t = d_v = 64, D = 32.
WORDS = ("ids", [320, 1125, 539, 320])
FRESH = {
    "CoOp": {"ctx": ("normal", 0.02)},
    "KgCoOp": {"ctx": WORDS},
    "CoCoOp": {
        "ctx": WORDS,
        r"meta_net\.linear1\..*": ("linear", 32),
        r"meta_net\.linear2\..*": ("linear", 2),
    },
    "MaPLe": {
        "ctx": ("ids", [320, 1125]),
        r"deep\.\d": ("normal", 0.02),
        r"projections\.\d\..*": ("linear", 64),
    },
    "VPT": {r"vision\.prompts": ("normal", 0.02), r"vision\.deep\.\d": ("normal", 0.02)},
    "CLIPAdapter": {r"fc\.0\.weight": ("linear", 32), r"fc\.2\.weight": ("linear", 8)},
    "PromptSRC": {
        "ctx": WORDS,
        r"deep\.\d": ("normal", 0.02),
        r"vision\.prompts": ("normal", 0.02),
        r"vision\.deep\.\d": ("normal", 0.02),
    },
    "PRE": {"ctx": WORDS, r"encoder_network\.lstm_head\..*": ("linear", 32)},
    "LASP": {
        "ctx": WORDS,
        "w": ("all", 0.0),
        r"\d\.ln_\d\.weight": ("all", 1.0),  # CLIP's own
        r"\d\.ln_\d\.bias": ("all", 0.0),
    },
    "EPT": {
        "ctx": WORDS,
        "a|fusion.o|projection.up": ("all", 0.0),
        "b": ("normal", 0.02),
        r"fusion\.[qkv]|projection\.(down|gate)": ("linear", 64),
    },
    # Its start is held by tests/trainers/test_ept.py: what it is made into is "a photo of a".
    "LAMP": {"kappa": ("all", 0.0)},
    # Before it sees the images.
    "SPT": {r"vision\.prompts": ("normal", 0.02), r"vision\.deep\.\d": ("normal", 0.02)},
    "IPT": {
        r"norm\.weight": ("all", 1.0),
        r"norm\.bias|up\..*": ("all", 0.0),
        r"down\..*": ("linear", 64),
        r"conv\..*": ("linear", 3),
    },
    "InfoPrompt": {"ctx": WORDS, "weight": ("linear", 64)},
    "StablePT": {
        "ctx": ("normal", 1.0),
        r"norm_\w+\.weight": ("all", 1.0),
        r"norm_\w+\.bias": ("all", 0.0),
        r"[qkv]\.weight|out\..*|mlp\.0\..*": ("linear", 64),
        r"mlp\.2\..*": ("linear", 32),
        "project.weight": ("all", 0.0),
    },
    "MP2": {"z|rho": ("linear", 1e6), "a": ("linear", 4 * 64)},
    "CaPT_CoOp": {
        "ctx": ("normal", 0.02),
        r"down\..*": ("linear", 32),
        r"up\..*": ("linear", 64),
    },
    "CaPT_KgCoOp": {"ctx": WORDS, r"down\..*": ("linear", 32), r"up\..*": ("linear", 64)},
    "TCP": {
        "ctx": ("normal", 0.02),
        r"meta_net\.linear1\..*": ("linear", 32),
        r"meta_net\.linear2\..*": ("linear", 8),
    },
    # Xavier, uniform, at a gain of 1e-4: ±1e-4 √(6 / (64 + 32)).
    "RLPrompt": {r"\w+\.weight": ("linear", 96 / 6e-8), r"\w+\.bias": ("all", 0.0)},
}
FRESH["ProMetaR"] = FRESH["PromptSRC"]
FRESH["CoPrompt"] = FRESH["CoPromptTemplates"] = {
    **FRESH["MaPLe"],
    r"(image|text)\.fc\.0\.weight": ("linear", 32),
    r"(image|text)\.fc\.2\.weight": ("linear", 8),
}
FRESH_HEAD = {
    r"cat\.cwt_\w+\.scale": ("all", 1.0),
    r"cat\.cwt_\w+\.bias": ("all", 0.0),
    r"cat\.classifier\..*": ("linear", 32),
}
SHAPES = {
    "CoOp": {"ctx": (16, 64)},
    "KgCoOp": {"ctx": (4, 64)},
    "CoCoOp": {
        "ctx": (4, 64),
        "meta_net.linear1.weight": (2, 32),
        "meta_net.linear1.bias": (2,),
        "meta_net.linear2.weight": (64, 2),
        "meta_net.linear2.bias": (64,),
    },
    "MaPLe": {
        "ctx": (2, 64),
        **{f"deep.{i}": (2, 64) for i in range(2)},
        **{f"projections.{i}.weight": (64, 64) for i in range(3)},
        **{f"projections.{i}.bias": (64,) for i in range(3)},
    },
    "VPT": {"vision.prompts": (8, 64), **{f"vision.deep.{i}": (8, 64) for i in range(2)}},
    "CLIPAdapter": {"fc.0.weight": (8, 32), "fc.2.weight": (32, 8)},
    "PromptSRC": {
        "ctx": (4, 64),
        "deep.0": (4, 64),
        "vision.prompts": (4, 64),
        **{f"vision.deep.{i}": (4, 64) for i in range(2)},
    },
}
SHAPES |= {
    "ProMetaR": SHAPES["PromptSRC"],
    "PRE": {
        "ctx": (4, 64),
        **{
            f"encoder_network.lstm_head.{name}_l0{end}": shape
            for end in ("", "_reverse")
            for name, shape in (
                *(("weight_ih", (128, 64)), ("weight_hh", (128, 32))),
                *(("bias_ih", (128,)), ("bias_hh", (128,))),
            )
        },
    },
    "LASP": {
        "ctx": (4, 64),
        "w": (1, 32),
        **{
            f"{i}.{norm}.{kind}": (64,)
            for i in range(3)
            for norm in ("ln_1", "ln_2")
            for kind in ("weight", "bias")
        },
    },
    "EPT": {
        "ctx": (4, 64),
        **{f"fusion.{name}": (64, 32) for name in "qkv"},
        "fusion.o": (32, 64),
        "projection.down": (4, 64, 16),
        "projection.up": (4, 16, 64),
        "projection.gate": (4, 64),
        "a": (8, 4),
        "b": (4, 64),
    },
    "LAMP": {"u": (16, 4), "q": (4,), "v": (4, 64), "kappa": ()},
    "SPT": {"vision.prompts": (8, 64), **{f"vision.deep.{i}": (8, 64) for i in range(2)}},
    "IPT": {
        **{f"norm.{kind}": (64,) for kind in ("weight", "bias")},
        "down.weight": (64, 64),
        "down.bias": (64,),
        "conv.weight": (64, 1, 3),
        "conv.bias": (64,),
        "up.weight": (64, 64),
        "up.bias": (64,),
    },
    "InfoPrompt": {"ctx": (4, 64), "weight": (32, 64)},
    "StablePT": {
        "ctx": (10, 64),
        **{f"norm_{x}.{k}": (64,) for x in ("prompts", "texts", "mlp") for k in ("weight", "bias")},
        **{f"{name}.weight": (64, 64) for name in ("q", "k", "v", "out")},
        "out.bias": (64,),
        "mlp.0.weight": (32, 64),
        "mlp.0.bias": (32,),
        "mlp.2.weight": (64, 32),
        "mlp.2.bias": (64,),
        "project.weight": (32, 64),
    },
    "MP2": {"z": (8, 64), "a": (64, 256), "rho": (1, 8)},
    **{
        name: {
            "ctx": (n, 64),
            "down.weight": (32, 32),
            "down.bias": (32,),
            "up.weight": (32, 64),
            "up.bias": (64,),
        }
        for name, n in (("CaPT_CoOp", 16), ("CaPT_KgCoOp", 4))
    },
    "TCP": {
        "ctx": (16, 64),
        "meta_net.linear1.weight": (8, 32),
        "meta_net.linear1.bias": (8,),
        "meta_net.linear2.weight": (1024, 8),
        "meta_net.linear2.bias": (1024,),
    },
    "RLPrompt": {
        "up.weight": (32, 64),
        "up.bias": (32,),
        "down.weight": (64, 32),
        "down.bias": (64,),
    },
}
SHAPES["CoPrompt"] = SHAPES["CoPromptTemplates"] = {
    **SHAPES["MaPLe"],
    **{f"{x}.fc.0.weight": (8, 32) for x in ("image", "text")},
    **{f"{x}.fc.2.weight": (32, 8) for x in ("image", "text")},
}
HEAD_SHAPES = {
    "cat.cwt_image.scale": (32,),
    "cat.cwt_image.bias": (32,),
    "cat.cwt_text.scale": (32,),
    "cat.cwt_text.bias": (32,),
    "cat.classifier.weight": (5, 32),
    "cat.classifier.bias": (5,),
}


def check_fresh(values: torch.Tensor, kind: str, what, encoders, name: str) -> None:
    if kind == "all":
        assert (values == what).all(), name
    elif kind == "ids":
        words = encoders.text.token_embedding.weight[what].float()
        torch.testing.assert_close(values, words, rtol=0, atol=0, msg=name)
    else:
        n = values.numel()
        std = what if kind == "normal" else 1 / math.sqrt(3 * what)
        assert abs(values.mean()) < 4.5 * std / math.sqrt(n), name
        if n > 20:
            assert values.std().item() == pytest.approx(std, rel=4.5 / math.sqrt(2 * n)), name
        largest = values.abs().max().item()
        if kind == "linear":
            assert largest <= 1 / math.sqrt(what), name
        elif n > 400:
            assert largest > 2 * std, name  # not uniform


# One that starts as CLIP's own blocks is held by its own test.
FRESHLY_DRAWN = [name for name in METHODS + NEIGHBORS + COMPARED + WRAPPED if "SkipT" not in name]


@pytest.mark.parametrize("name", FRESHLY_DRAWN)
def test_fresh_parameters(make_trainer, name):
    bare = name.removeprefix("DePT_").removeprefix("DPC_")
    trainer = make_trainer(name, TRAINER__COOP__N_CTX=16)
    # By the names without their modules, as the head's are with theirs.
    short = {full: s for s, full in trainer.method.names().items() if s != full}
    trained = {
        key if key.startswith("cat.") else short.get(key, key): value
        for key, value in trainer.method.trained().items()
    }
    shapes = SHAPES[bare] | (HEAD_SHAPES if name in WRAPPED else {})
    assert {key: tuple(p.shape) for key, p in trained.items()} == shapes
    rules = FRESH[bare] | (FRESH_HEAD if name in WRAPPED else {})
    drawn = []
    for key, parameter in trained.items():
        if bare == "LAMP" and key in ("u", "q", "v"):
            continue
        (rule,) = (rule for pattern, rule in rules.items() if re.fullmatch(pattern, key))
        check_fresh(parameter.detach(), *rule, trainer.method.encoders, f"{name}: {key}")
        if rule[0] in ("normal", "linear"):
            drawn.append(parameter.detach().flatten())
    for i, one in enumerate(drawn):  # each is drawn by itself
        assert not any(one.shape == other.shape and torch.equal(one, other) for other in drawn[:i])


def test_fresh_contexts_per_class(make_trainer):
    options = {"TRAINER__COOP__CSC": True, "TRAINER__COOP__N_CTX": 16}
    trainer = make_trainer("CoOp", **options)
    ctx = trainer.method.context.ctx.detach()
    assert ctx.shape == (5, 16, 64)
    check_fresh(ctx, "normal", 0.02, None, "CSC")
    assert not torch.equal(ctx[0], ctx[1])
    options["TRAINER__COOP__CTX_INIT"] = "a photo of a"
    trainer = make_trainer("CoOp", **options)  # words are shared, as in the original code
    check_fresh(trainer.method.context.ctx.detach(), *WORDS, trainer.method.encoders, "of words")

"""Every config file merges, and says no more than what differs."""

from pathlib import Path

import pytest
import yaml

import trainers
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from tuning.options import parse_args, setup_cfg

trainers.modules()
CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("trainers/[!_]*/**/*.yaml"))


def merged(file=None):
    return setup_cfg(parse_args(["--config-file", str(file)] if file else []))


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CONFIGS / "trainers")))
def test_trainer_files_change_what_they_say(file):
    cfg = merged(file)
    content = yaml.safe_load(file.read_text())
    below = merged(file.parent / content.pop("_BASE_"))
    for key, value in flat(content):
        now, before = cfg, below
        for part in key.split("."):
            now, before = now[part], before[part]
        assert now != before, f"{key}: {value} says what its base says"


def test_every_trainer_has_a_schedule_for_the_mini_world_and_for_each_vit():
    for name in TRAINER_REGISTRY.registered_names():
        if name.startswith("Elsewhere"):
            continue
        names = [f.stem for f in (CONFIGS / "trainers" / name).glob("*.yaml")]
        for start in ("mini", "vit_b16", "vit_b32", "vit_l14"):
            assert any(n.startswith(start) for n in names), f"{name} has no {start}*.yaml"


def test_settings_per_data_set_are_said():
    """A config says so exactly where data sets have files of their own beside it."""
    for file in FILES:
        own = file.with_suffix("").is_dir() or (file.parent.with_suffix(".yaml") in FILES)
        assert own == merged(file).TRAINER.SETTINGS_PER_DATA_SET, file


@pytest.mark.parametrize("trainer", ["CoOp", "DePT_MaPLe", "DePT_KgCoOp", "VPT"])
def test_the_papers_schedule(trainer):
    cfg = merged(CONFIGS / "trainers" / trainer / "vit_b16_ep10.yaml")
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.NAME) == (0.0035, 10, "sgd")
    assert (cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_CONS_LR) == (1, 1e-5)
    assert (cfg.OPTIM.MOMENTUM, cfg.OPTIM.WEIGHT_DECAY) == (0.9, 5e-4)
    assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 4
    assert cfg.DATALOADER.TEST.BATCH_SIZE == 100
    assert cfg.TRAINER.DEPT.WEIGHT == 0.7
    assert cfg.TRAINER.DEPT.LR_MULT == 6.5


def test_cocoop_takes_one_image_at_a_time():
    cfg = merged(CONFIGS / "trainers" / "DePT_CoCoOp" / "vit_b32_ep10.yaml")
    assert (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.LR) == (1, 0.002)
    assert cfg.MODEL.BACKBONE.NAME == "ViT-B/32"


def test_an_existing_coop_yaml_merges_unchanged(tmp_path):
    """As in the public CoOp repository: lists for tuples, numbers as words, a fixed key order."""
    file = tmp_path / "vit_b16_ep50.yaml"
    file.write_text(
        "DATALOADER:\n  TRAIN_X:\n    BATCH_SIZE: 32\n  TEST:\n    BATCH_SIZE: 100\n"
        "  NUM_WORKERS: 8\nINPUT:\n  SIZE: (224, 224)\n  INTERPOLATION: 'bicubic'\n"
        "  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]\n"
        "  PIXEL_STD: [0.26862954, 0.26130258, 0.27577711]\n"
        "  TRANSFORMS: ['random_resized_crop', 'random_flip', 'normalize']\n"
        "OPTIM:\n  NAME: 'sgd'\n  LR: 0.002\n  MAX_EPOCH: 50\n  LR_SCHEDULER: 'cosine'\n"
        "  WARMUP_EPOCH: 1\n  WARMUP_TYPE: 'constant'\n  WARMUP_CONS_LR: 1e-5\n"
        "TRAIN:\n  PRINT_FREQ: 5\nMODEL:\n  BACKBONE:\n    NAME: 'ViT-B/16'\n"
        "TRAINER:\n  COOP:\n    CTX_INIT: 'a photo of a'\n    CSC: False\n"
    )
    cfg = merged(file)
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5
    assert tuple(cfg.INPUT.SIZE) == (224, 224)


def test_methods_add_their_own_defaults():
    plain, extended = get_cfg_default(), merged()
    assert "COOP" not in plain.TRAINER
    assert extended.TRAINER.COOP.N_CTX == 16

"""Small output trees that look like finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from experiments.results.folders import changed_settings

LOG = """\
***************
** Arguments **
***************
backbone: 
config_file: configs/trainers/{trainer}/{config}.yaml
dataset_config_file: configs/datasets/{dataset}.yaml
eval_only: False
model_dir: {model_dir}
opts: ['DATASET.NUM_SHOTS', '16']
seed: {seed}
trainer: {trainer}
************
** Config **
************
DATALOADER:
  NUM_WORKERS: 8
DATASET:
  NAME: OxfordPets
  NUM_SHOTS: 16
  SUBSAMPLE_CLASSES: {classes}
INPUT:
  TRANSFORMS: ('random_resized_crop', 'random_flip', 'normalize')
OPTIM:
  LR: {lr}
OUTPUT_DIR: somewhere
SEED: {seed}
Collecting env info ...
** System info **
PyTorch version: 1.13.1
"""
TEST = """\
Evaluate on the *test* set
=> result
* total: {total:,}
* correct: {correct:,}
* accuracy: {accuracy:.1f}%
* error: {error:.1f}%
* macro_f1: 50.0%
"""


def add_run(
    root: Path,
    place: str,
    accuracy: float,
    seed: int = 1,
    trainer: str = "CoOp",
    config: str = "tiny",
    shots: int = 16,
    lr: float = 0.002,
    **result: object,
) -> Path:
    """Write result.json and config.yaml as a run does; `place` is <group>/<stage>/<data set>."""
    folder = root / place / f"shots_{shots}" / trainer / config / f"seed{seed}"
    folder.mkdir(parents=True)
    classes = "base" if "train_base" in place else "new" if "test_new" in place else "all"
    content = {"trainer": trainer, "seed": seed, "shots": shots, "classes": classes}
    content |= {"accuracy": accuracy, "dataset": place.rsplit("/", 1)[-1], **result}
    (folder / "result.json").write_text(json.dumps(content))
    settings = {"SEED": seed, "OPTIM": {"LR": lr}, "DATASET": {"SUBSAMPLE_CLASSES": classes}}
    settings["TRAINER"] = {"DEPT": {"WEIGHT": 0.7}}
    for key, value in changed_settings(config).items():
        *nodes, name = key.split(".")
        node = settings
        for part in nodes:
            node = node.setdefault(part, {})
        node[name] = yaml.safe_load(value)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def identity(
    data: dict[str, str] | None = None,
    files: dict[str, str] | None = None,
    **settings: object,
) -> dict[str, dict]:
    """Return an identity as a run records it; `OPTIM__LR=0.1` is a setting."""
    known = {"MODEL.BACKBONE.NAME": "f00"} | (files or {})
    digests = {"classes": "c", "template": "a {}.", "train_x": "x", "test": "t"} | (data or {})
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return {"settings": {"OPTIM.LR": 0.002, **named}, "data": digests, "files": known}


def add_pair(root: Path, dataset: str, base: float, new: float, **options: object) -> None:
    """Write a base-to-new pair of runs."""
    add_run(root, f"base2new/train_base/{dataset}", base, **options)
    add_run(root, f"base2new/test_new/{dataset}", new, **options)


def original_log(correct: int, total: int = 1000, test: bool = True, **fields: object) -> str:
    """Return a log.txt as the original code writes it; without `test`, it stops before its test."""
    values = {"trainer": "CoOp", "config": "vit_b16", "dataset": "oxford_pets", "model_dir": ""}
    values |= {"seed": 1, "classes": "base", "lr": 0.0035, **fields}
    percent = 100 * correct / total
    end = TEST.format(total=total, correct=correct, accuracy=percent, error=100 - percent)
    return LOG.format(**values) + "epoch [1/10] loss 1.2\n" + (end if test else "")

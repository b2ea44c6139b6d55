"""Where the configs lie, and which settings a data set has to itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def config_file(trainer: str, config: str, dataset: str) -> Path:
    """Return the file of a trainer's config for a data set.

    That is configs/trainers/<trainer>/<config>/<dataset>.yaml where the data set has one of its
    own there, else configs/trainers/<trainer>/<config>.yaml.
    """
    folder = CONFIGS / "trainers" / trainer
    own = folder / config / f"{dataset}.yaml"
    return own if own.is_file() else folder / f"{config}.yaml"


@cache
def settings_by_dataset(trainer: str, config: str, dataset: str) -> dict[str, Any]:
    """Return {key: value} of the settings in which data sets differ in this config.

    The values are those of `dataset`: of its own file, or of the one that the others share.
    """
    from dassl.config import file_values

    folder = CONFIGS / "trainers" / trainer
    shared = folder / f"{config}.yaml"
    if not shared.is_file():
        return {}
    common = file_values(shared)
    varied = {
        key
        for path in sorted((folder / config).glob("*.yaml"))
        for key, value in file_values(path).items()
        if common.get(key) != value
    }
    values = file_values(config_file(trainer, config, dataset))
    return {key: values.get(key) for key in varied}

"""The config that a run begins with: every default, or that of the run it goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dassl.config import CfgNode
from dassl.utils import UserError

_known: dict[tuple, CfgNode] = {}  # the latest: each method is asked for its keys once


def default_cfg() -> CfgNode:
    """The defaults of the engine and of every method, a fresh copy."""
    import trainers
    from dassl.config import add_defaults, full_defaults
    from dassl.config.defaults import extensions

    def asked() -> tuple:
        own = ((module, getattr(module, "extend_cfg", None)) for module in trainers.modules())
        return (*extensions(), *own)

    add_defaults(trainers.extend_cfg)
    if (cfg := _known.get(asked())) is None:
        cfg = full_defaults()  # this may leave modules out
        _known.clear()
        _known[asked()] = cfg
    return cfg.clone()


def default_settings() -> dict[str, Any]:
    """{dotted key: default} of this version, without the machine's keys."""
    from dassl.config import identity

    default_cfg()
    return identity.default_settings()


def read_config(folder: str | os.PathLike) -> CfgNode:
    """The config of the run in `folder`, without the paths of whoever trained it.

    Raises:
        UserError: there is no run of train.py.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{folder} is no run of train.py: there is no {path}; give the folder that was its "
            "--output-dir, or a checkpoint in it"
        )
    cfg = default_cfg()
    machine = cfg.clone()
    cfg.merge_from_file(str(path))
    if not cfg.TRAINER.NAME:
        raise UserError(f"{path} names no trainer: it is cut off, or no run's")
    for node, key in (("DATALOADER", "FEATURE_CACHE"), ("", "OUTPUT_DIR"), ("", "RESUME")):
        branch, own = (cfg[node], machine[node]) if node else (cfg, machine)
        branch[key] = own[key]
    cfg.MODEL.INIT_WEIGHTS = ""
    cfg.OVERWRITE = False
    return cfg

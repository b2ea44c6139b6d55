"""Every module in this folder is imported, and so registers its trainers by being there.

One that can't be imported, or wants a name that is taken, is left out and named in a line. Then
DPC is registered around each method of prompts (dpc.py), and DePT around each method, DPC's too
(dept.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, import_folder, leave_out
from tuning.naming import bare_name, is_wrapped, parallel_name, wrapped_name

# The methods that come with this code: their names can't be taken by a file that is added.
METHODS = (
    *("zsclip", "clip_adapter", "coop", "cocoop", "kgcoop", "vpt", "maple", "promptsrc", "dept"),
    "robustprompt",
    *("mma", "mmrl", "mmrlpp", "clip_lora"),
    *("pre", "lasp", "ept", "lamp", "spt", "ipt", "infoprompt", "stablept"),
    *("tip_adapter", "taskres", "lppp", "clap", "mp2", "rlprompt"),
    *("tcp", "capt", "skipt"),
    *("prometar", "coprompt", "promptkd"),
    "dpc",
)

_NO_PROMPTS = "DePT trains a head, which isn't prompts: no mean of two is one"


@cache
def modules() -> list[ModuleType]:
    """Import and return all modules of this package, `METHODS` first."""
    found = import_folder(sys.modules[__name__], METHODS, TRAINER_REGISTRY)
    from . import dept, dpc

    dpc.register_twins()
    dept.register_twins()
    for name in filter(is_wrapped, TRAINER_REGISTRY.registered_names()):
        around = wrapped_name(parallel_name(bare_name(name)))
        why = f"DePT goes around DPC, as {around}" if around in TRAINER_REGISTRY else _NO_PROMPTS
        TRAINER_REGISTRY.refuse(parallel_name(name), why)
    return found


def extend_cfg(cfg: CfgNode) -> None:
    """Add the defaults of the shared code, and those each method declares beside its own.

    A module that fails to, or gives a key that is there already another default, is left out.
    """
    from tuning.trainer import extend_cfg as extend_shared

    extend_shared(cfg)
    for module in list(modules()):
        if not hasattr(module, "extend_cfg"):
            continue
        extended = cfg.clone()
        try:
            module.extend_cfg(extended)
            added = list(_added(cfg, extended))
        except (Exception, SystemExit) as error:
            leave_out(module.__name__, error, TRAINER_REGISTRY)
            modules().remove(module)
            continue
        for node, key, value in added:
            node[key] = value
        cfg.public_options.update(extended.public_options)


def _added(
    node: CfgNode, extended: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[CfgNode, str, Any]]:
    """Yield (node, key, value) for what `extended` has and `node` lacks.

    Raises UserError if they have another value under one key.
    """
    for key, value in extended.items():
        name = f"{prefix}{key}"
        if key not in node:
            yield node, key, value
        elif isinstance(node[key], CfgNode) and isinstance(value, Mapping):
            yield from _added(node[key], value, f"{name}.")
        elif node[key] != value:
            raise UserError(f"the default of {name} is {node[key]!r}, not {value!r}")

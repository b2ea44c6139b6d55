"""Every module in this folder is imported, and so registers its trainers by being there."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def modules() -> list[ModuleType]:
    """Import and return all modules of this package, in the order of their names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def extend_cfg(cfg) -> None:
    """Add the defaults of the shared code, and those each method declares beside its own."""
    from tuning.trainer import extend_cfg

    extend_cfg(cfg)
    for module in modules():
        if hasattr(module, "extend_cfg"):
            module.extend_cfg(cfg)

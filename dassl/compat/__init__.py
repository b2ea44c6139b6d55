"""Names of Dassl that nothing here uses: for trainers and data sets written elsewhere. Skip it.

A module path in `MODULES` doesn't exist as a file; importing it gives the names of its home. Names
that modules of ours must have for such code are imported there from a file of this package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Dassl's module path -> the module that has its names.
MODULES = {
    "dassl.modeling": "dassl.compat.modeling",
    "dassl.modeling.backbone": "dassl.compat.modeling",
    "dassl.modeling.head": "dassl.compat.modeling",
    "dassl.modeling.network": "dassl.compat.modeling",
    "dassl.utils.tools": "dassl.compat.tools",
    "dassl.utils.torchtools": "dassl.compat.tools",
}


class _Paths(MetaPathFinder, Loader):
    """Finds the modules of `MODULES`; costs nothing until one is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        is_package = any(name.startswith(f"{fullname}.") for name in MODULES)
        return ModuleSpec(fullname, self, is_package=is_package)

    def exec_module(self, module: ModuleType) -> None:
        home = importlib.import_module(MODULES[module.__name__])
        names = home.__all__
        vars(module).update({name: getattr(home, name) for name in names}, __all__=names)


sys.meta_path.append(_Paths())

"""The tensors of a TorchScript archive, without its code.

The archive's pickle holds a tree of objects, whose classes its code describes. Here an object is
what it holds, and of the code only the lists of parameters and buffers are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .pickles import DEPTH, PickleError

_MODULES = 1_000_000  # in a tree; one that shares its branches can be endless

Find = Callable[[str, str], Any]
Names = tuple[list[str], list[str]]  # of parameters, of buffers


class _Object:
    """Stands for an object of a TorchScript class."""

    name = ""

    def __init__(self, *args: Any) -> None:
        self.state: Any = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


_NAMES: dict[str, Callable] = {
    **{f"build_{kind}list": list for kind in ("int", "double", "bool", "tensor", "complex")},
    "restore_type_tag": lambda value, _: value,
}


def script_finder(others: Find) -> Find:
    """Return what stands for the names in an archive's pickle; `others` knows the usual ones."""

    def find(module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type("_Object", (_Object,), {"name": f"{module}.{name}"})
        if module == "torch.jit._pickle" and name in _NAMES:
            return _NAMES[name]
        return others(module, name)

    return find


def state_dict(root: Any, source: Callable[[str], bytes]) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a module and of those in it, by dotted names.

    Args:
        root: what the archive's pickle holds.
        source: name of a file of its code, such as `__torch__/a.py` → its content.

    Raises:
        PickleError: that is no module, or one that can only be read by running its code.
    """
    classes: dict[str, dict[str, Names]] = {}
    found: dict[str, torch.Tensor] = {}
    seen = 0

    def names_of(qualified: str) -> Names | None:
        module, _, name = qualified.rpartition(".")
        if module not in classes:
            text = source(f"{module.replace('.', '/')}.py").decode("utf-8", "replace")
            classes[module] = dict(_modules(text))
        return classes[module].get(name)

    def collect(module: _Object, prefix: str, depth: int) -> None:
        nonlocal seen
        seen += 1
        names = names_of(module.name)
        if names is None:
            return
        if not isinstance(module.state, dict) or depth > DEPTH or seen > _MODULES:
            raise PickleError("it holds no tree of modules")
        for kind in names:
            for name, value in module.state.items():
                if name in kind and isinstance(value, torch.Tensor):
                    found[prefix + name] = value
        for name, value in module.state.items():
            if isinstance(value, _Object):
                collect(value, f"{prefix}{name}.", depth + 1)

    if not isinstance(root, _Object):
        raise PickleError("it holds no module")
    collect(root, "", 0)
    return found


def _modules(source: str) -> Iterator[tuple[str, Names]]:
    """Yield the modules among the classes of a source, and the names of their tensors."""
    for part in re.split(r"^class ", source, flags=re.MULTILINE)[1:]:
        head = re.match(r"(\w+)\(Module\):", part)
        if not head:
            continue
        if re.search(r"^  def __setstate__\(", part, re.MULTILINE):
            raise PickleError(f"its module {head[1]} is read by code of its own, which isn't run")
        yield head[1], (_listed(part, "parameters"), _listed(part, "buffers"))


def _listed(part: str, kind: str) -> list[str]:
    found = re.search(rf"^  __{kind}__ = \[([^\]\n]*)\]", part, re.MULTILINE)
    return re.findall(r'"([^"]*)"', found[1]) if found else []

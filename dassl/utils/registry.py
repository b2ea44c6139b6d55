"""Names to classes and functions, filled by decorators; and the folders of files that fill them."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UserError, suggest


class NameTaken(KeyError):
    """Two objects are to be registered under one name."""

    def __str__(self) -> str:
        return self.args[0]  # a KeyError's own text stands in quotes


class Registry:
    """A table of named objects; `name` says what is registered ("TRAINER").

    `@REGISTRY.register()` above a class or function enters it under its own name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, Any] = {}
        self._left_out: dict[str, str] = {}

    @property
    def what(self) -> str:
        """What is registered, for people: "trainer"."""
        return self._name.lower().replace("_", " ")

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Enter `obj`, or return the decorator that does.

        Raises NameTaken if another object has the name and `force` is not set.
        """
        if obj is None:
            return self._decorator(force)
        name = obj.__name__
        if name in self._objects and not force:
            home = self._objects[name].__module__
            raise NameTaken(f"the {self.what} {name} is registered already, by {home}")
        self._objects[name] = obj
        return obj

    def _decorator(self, force: bool) -> Callable[[Any], Any]:
        return lambda obj: self.register(obj, force=force)

    def get(self, name: str) -> Any:
        """Return the object called `name`. Raises UserError naming the choices."""
        if name in self._objects:
            return self._objects[name]
        if name in self._left_out:
            raise UserError(f"{self.what} '{name}' can't be had: {self._left_out[name]}")
        names = ", ".join(sorted(self._objects)) or "none"
        near = suggest(name, self._objects)
        raise UserError(f"unknown {self.what} '{name}'{near}; registered: {names}")

    def leave_out(self, module: str, names: Sequence[str], reason: str) -> None:
        """Forget what `module` entered; whoever asks for it, or for `names`, is told the reason."""
        own = [name for name, obj in self._objects.items() if obj.__module__ == module]
        for name in own:
            del self._objects[name]
        self._left_out.update(dict.fromkeys([*own, *names], reason))

    def refuse(self, name: str, reason: str) -> None:
        """Have whoever asks for `name`, which nothing has, be told the reason."""
        self._left_out[name] = reason

    def registered_names(self) -> list[str]:
        """Return the names in the order of registration."""
        return list(self._objects)

    def __contains__(self, name: str) -> bool:
        return name in self._objects

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)


def import_folder(package: ModuleType, own: Sequence[str], registry: Registry) -> list[ModuleType]:
    """Import the modules of `package`, so that they register what they have, and return them.

    The `own` ones come first, in their order, so that no file that somebody adds takes a name of
    theirs; then the others by name. One that fails is left out, and named in a line.
    """
    found = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = []
    for name in [*own, *(name for name in found if name not in own)]:
        full_name = f"{package.__name__}.{name}"
        try:
            modules.append(importlib.import_module(full_name))
        except (Exception, SystemExit) as error:  # whatever a stranger's file may do
            leave_out(full_name, error, registry)
    return modules


def leave_out(full_name: str, error: BaseException, registry: Registry) -> None:
    """Say in one line that the module is left out and why; `registry` forgets what it entered."""
    spec = importlib.util.find_spec(full_name)
    file = Path(spec.origin if spec and spec.origin else full_name)
    shown = "/".join(file.parts[-2:])
    reason = next(iter(str(error).strip().splitlines()), "")
    if not isinstance(error, (UserError, NameTaken)):  # whose text is a sentence
        reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    line = f"{shown} left out: {reason}"
    print(line, file=sys.stderr)
    classes = re.findall(r"^class (\w+)", file.read_text("utf-8", "replace"), re.MULTILINE)
    registry.leave_out(full_name, classes, line)

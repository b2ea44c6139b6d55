"""Names to classes and functions, filled by decorators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .errors import UserError, suggest


class Registry:
    """A table of named objects; `name` says what is registered ("TRAINER").

    `@REGISTRY.register()` above a class or function enters it under its own name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Enter `obj`, or return the decorator that does.

        Raises KeyError if the name is taken by another object and `force` is not set.
        """
        if obj is None:
            return self._decorator(force)
        name = obj.__name__
        if name in self._objects and not force:
            raise KeyError(f"{self._name}: {name} is registered already")
        self._objects[name] = obj
        return obj

    def _decorator(self, force: bool) -> Callable[[Any], Any]:
        return lambda obj: self.register(obj, force=force)

    def get(self, name: str) -> Any:
        """Return the object called `name`. Raises UserError naming the choices."""
        if name not in self._objects:
            what = self._name.lower().replace("_", " ")
            names = ", ".join(sorted(self._objects)) or "none"
            near = suggest(name, self._objects)
            raise UserError(f"unknown {what} '{name}'{near}; registered: {names}")
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """Return the names in the order of registration."""
        return list(self._objects)

    def __contains__(self, name: str) -> bool:
        return name in self._objects

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

"""Options as other code of the family calls them, and what they mean here.

A module that adds keys of its own also says under which names public configs set them:

    public(cfg, "TRAINER.LINEAR_PROBE.WEIGHT", "TRAINER.DEPT.WEIGHT")
    public(cfg, "TRAINER.COOP.CTX_INIT", values={True: "a photo of a"})
    public(cfg, "TRAINER.COOP.ALPHA", None, "no code reads it")

Merging then takes such a name as it takes a key; `cfg.remarks` says what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SAME = object()
UNCHANGED = object()  # what a function of values returns where nothing changes


@dataclass(frozen=True)
class PublicOption:
    """What an option of other code means here.

    key: ours; None where nothing depends on it. why: what to say of one without effect. values:
    ours for theirs, where they differ: a table (others stay as they are), or a function, which
    raises ValueError for what can't be done here, and returns UNCHANGED where nothing changes.
    """

    key: str | None
    why: str = ""
    values: Mapping[Any, Any] | Callable[[Any], Any] | None = None

    def translate(self, value: Any) -> Any:
        """Our value for theirs. Raises ValueError."""
        if self.values is None:
            return value
        if callable(self.values):
            return self.values(value)
        # True is not 1 here, though the two are equal.
        ours = (o for theirs, o in self.values.items() if _same(theirs, value))
        return next(ours, value)

    def may_be_none(self) -> bool:
        """Whether None is among our values."""
        return isinstance(self.values, Mapping) and None in self.values.values()


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def public(
    cfg: Any,
    name: str,
    key: str | None | object = SAME,
    why: str = "",
    values: Mapping[Any, Any] | Callable[[Any], Any] | None = None,
) -> None:
    """Declare that public configs call `key` of `cfg` `name`; by default the same name.

    See `PublicOption` for the other arguments. A name that is a key as well is that key.
    """
    cfg.public_options[name] = PublicOption(name if key is SAME else key, why, values)

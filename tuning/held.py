"""What methods hold beside the parameters they train, to tell whether it is what it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import is_
from typing import Any

import torch
from torch import nn

from .method import Method

# Of a module's attributes: what PyTorch flips, and what is kept to save work.
_LEFT_OUT = {"training", "_text_cache"}
_PLAIN = (bool, int, float, str)


def own_modules(method: Method) -> list[tuple[str, nn.Module]]:
    """A method and its modules but for the encoders, which runs share, by place."""
    shared = set(method.encoders.modules())
    named = method.named_modules()
    return [(f"{name}." if name else "", module) for name, module in named if module not in shared]


def differ(a: Any, b: Any) -> bool:
    """Whether plain values or tensors differ; of anything else it isn't asked."""
    if a is b:
        return False
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return not torch.equal(a, b)
    return isinstance(a, _PLAIN) and a != b


class Held:
    """Attributes, buffers and resting parameters of some modules, by place, as they are now.

    They are held themselves, so that nothing new takes the place in memory of one that is gone.
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        # Taken at every step, so without a loop of its own over what there is.
        self._places: list[tuple[str, tuple[str, ...]]] = []
        self._values: list[Any] = []
        for place, module in modules:
            own = {**vars(module), **module._buffers}
            own |= {key: p for key, p in module._parameters.items() if p is None or _rests(p)}
            for key in _LEFT_OUT & own.keys():
                del own[key]
            self._places.append((place, tuple(own)))
            self._values += own.values()
        self._versions = [x._version if isinstance(x, torch.Tensor) else 0 for x in self._values]

    def same_as(self, other: Held | None) -> bool:
        """Whether nothing is another, or changed in place; plain values may be equal."""
        if other is None or self._versions != other._versions or self._places != other._places:
            return False
        ours, theirs = self._values, other._values
        return all(map(is_, ours, theirs)) or not any(map(_is_another, ours, theirs))

    def changed_since(self, other: Held) -> list[str]:
        """The places of what isn't what it was, each "module.name"."""
        then = {p: (v, n) for p, v, n in other._all()}
        return [
            "".join(at)
            for at, value, version in self._all()
            if at not in then or _is_another(value, then[at][0]) or version != then[at][1]
        ]

    def _all(self) -> Iterator[tuple[tuple[str, str], Any, int]]:
        places = [(place, key) for place, keys in self._places for key in keys]
        return zip(places, self._values, self._versions, strict=True)


def _rests(parameter: nn.Parameter) -> bool:
    return not parameter.requires_grad


def _is_another(a: Any, b: Any) -> bool:
    return a is not b and not (isinstance(a, _PLAIN) and type(a) is type(b) and a == b)

"""What an encoder can be told to do inside, as data, and what it is asked to give back.

Layers are counted from 0; "before layer j" is the residual stream at the input of block j, in the
image tower's case j = 0 before ln_pre. Positions count from SOS or the class token, 0, in the
sequence as it stands there, with all that was inserted before. All but `Read` may hold trained
tensors; they are computed in the tower's precision. Shape letters: the package's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from dassl.utils import UserError

END = "end"  # the token whose output is the feature: EOT of a text, an image's class token


@dataclass(frozen=True, eq=False)
class Tokens:
    """Vectors put in place of the tokens at…at+N−1 before a layer, or in front of the token at.

    vectors: (N,W) for all; text also (C,N,W), one set per class, and (K,1|C,N,W), K contexts;
        images also (n,N,W), n sets that serve B/n consecutive images each.
    at: None: the end of an image's sequence, with `insert`.
    keep: so much of what stood there is added: vectors + keep · old.
    normed: at an image's layer 0 they come behind ln_pre instead of before it.
    """

    layer: int
    vectors: torch.Tensor
    at: int | None = 1
    insert: bool = False
    keep: float = 0.0
    normed: bool = False

    def __post_init__(self) -> None:
        if self.normed and self.layer:
            raise UserError("only before layer 0 is there a norm that tokens can come behind")
        if self.insert and self.keep:
            raise UserError("tokens that are inserted replace nothing that could be kept")

    @property
    def number(self) -> int:
        """N, how many tokens there are."""
        return self.vectors.shape[-2]


@dataclass(frozen=True, eq=False)
class NameShift:
    """Row j of `vectors` (n,W) is added to the embedding of a class's own token j (text only).

    A class's own tokens are its name and what follows it up to EOT, in order: not SOS, EOT, context
    or words that all classes have. Tokens beyond n stay. (K,1,n,W): one shift per context.
    """

    vectors: torch.Tensor
    layer = 0


@dataclass(frozen=True, eq=False)
class Branch:
    """`module` reads the stream inside a block, token by token; what it returns is added to it.

    of: what it reads: "input" x, "ln_1" of it, "attention" a, "middle" x + a, "ln_2" of that,
        "mlp" m, "output" x + a + m, without branches to it.
    to: "output", or "middle": then the block's MLP sees it.
    module: (…,W) → (…,W), each token by itself, in its own parameters' precision.
    """

    layer: int
    module: Callable[[torch.Tensor], torch.Tensor]
    of: str = "ln_1"
    to: str = "output"

    SOURCES = {
        "middle": ("input", "ln_1", "attention"),
        "output": ("input", "ln_1", "attention", "middle", "ln_2", "mlp", "output"),
    }

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module | _Called):
            raise UserError("a branch is a torch.nn.Module: what it trains must be found in it")
        if self.of not in self.SOURCES.get(self.to, ()):
            raise UserError(
                f"a branch of {self.of!r} to {self.to!r} can't be; "
                + "; ".join(f"to {to!r}: of {', '.join(of)}" for to, of in self.SOURCES.items())
            )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…,W), what `of` names → what is added, in the precision of x."""
        inner = next((p for p in tensors_of(self) if p.is_floating_point()), x)
        return self.module(x.to(inner.dtype)).to(x.dtype)


@dataclass(frozen=True, eq=False)
class LowRank:
    """scale · (x aᵀ) bᵀ is added to one of a block's products with x; a (r,in), b (out,r).

    part: "q", "k", "v", "o" (attention's output), "fc", "proj" (the MLP's two).
    dropout: of x, before a, in this product alone; give 0 for evaluation. Tokens that all classes
        share on the fast path share its draw.
    """

    layer: int
    part: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0
    dropout: float = 0.0

    PARTS = ("q", "k", "v", "o", "fc", "proj")

    def __post_init__(self) -> None:
        if self.part not in self.PARTS:
            raise UserError(f"a block has no part {self.part!r}; one of: {', '.join(self.PARTS)}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…,in) → scale · (x aᵀ) bᵀ (…,out), in the precision of x."""
        x = F.dropout(x, self.dropout) if self.dropout else x
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        return F.linear(F.linear(x, a), b) * self.scale


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors of the method's own in place of a block's, by the block's state-dict names.

    `Weights(j, dict(own_block.named_parameters()))` is a block of one's own. Layer = the tower's
    number of layers: what follows the blocks, under CLIP's names ("ln_final.weight",
    "ln_final.bias", "text_projection"; "ln_post.weight", "ln_post.bias", "proj").
    """

    layer: int
    tensors: Mapping[str, torch.Tensor]


Change = Tokens | NameShift | Branch | LowRank | Weights


@dataclass(frozen=True)
class Read:
    """Tokens to give back: before `layer` and its changes; None: after the last block and norm.

    at: END, a position, or a slice of positions; in texts shorter than that the rest are zeros.
    projected: to D, as the features are (after the last norm only).
    Gives (…,W) for one position, (…,n,W) for several; … is B, C or K,C.
    """

    layer: int | None = None
    at: int | slice | str = END
    projected: bool = False

    def reaches(self, layers: int) -> int:
        """The layer before which it is read, of a tower of so many."""
        return layers if self.layer is None else self.layer

    def __post_init__(self) -> None:
        if self.projected and self.layer is not None:
            raise UserError("only what follows the last norm is projected: leave out the layer")
        if isinstance(self.at, str) and self.at != END:
            raise UserError(f"tokens are read at a position, a slice or {END!r}, not {self.at!r}")


Reads = Mapping[str, Read]
FEATURES = "features"  # the feature's own name beside what is read


def first_layer(changes: Iterable[Change], layers: int) -> int:
    """The first layer that a change reaches; `layers` where none reaches a block."""
    return min((change.layer for change in changes), default=layers)


def check(changes: Sequence[Change], reads: Reads | None, layers: int, start: int = 0) -> None:
    """Everything stands at a layer that is there, and that the pass from `start` on reaches.

    Raises:
        UserError: it doesn't.
    """
    for change in changes:
        name = type(change).__name__
        last = layers if isinstance(change, Weights) else layers - 1
        if not 0 <= change.layer <= last:
            raise UserError(f"{name} at layer {change.layer}: the tower has layers 0 to {last}")
        if change.layer < start:
            raise UserError(
                f"{name} at layer {change.layer} lies below layer {start}, where the pass begins"
            )
    for name, read in (reads or {}).items():
        if name == FEATURES:
            raise UserError(f"{FEATURES!r} is the feature's own name: give the read another")
        if read.layer is not None and not start <= read.layer <= layers:
            raise UserError(
                f"read {name!r} at layer {read.layer}: the pass has layers {start} to {layers}"
            )


def reads_tokens(reads: Reads, layer: int, layers: int) -> bool:
    """Whether tokens besides the feature's are read before `layer`, of a tower of so many."""
    return any(read.at != END and read.reaches(layers) == layer for read in reads.values())


def placed(changes: Sequence[Change], length: int) -> list[Change]:
    """The changes layer by layer, each tokens' position known and within the sequence.

    length: how many tokens may be replaced, at the first layer; the one at 0 stays.

    Raises:
        UserError: tokens beyond it.
    """
    result = []
    for change in sorted(changes, key=lambda change: change.layer):
        if isinstance(change, Tokens):
            at = length if change.at is None and change.insert else change.at
            last = None if at is None else at if change.insert else at + change.number
            if at is None or last is None or at < 1 or last > length:
                raise UserError(
                    f"{change.number} tokens at position {at} before layer {change.layer}: "
                    f"there are positions 1 to {length - 1}"
                )
            length += change.number * change.insert
            change = replace(change, at=at)
        result.append(change)
    return result


def put(x: torch.Tensor, change: Tokens, vectors: torch.Tensor) -> torch.Tensor:
    """`change` with `vectors` (B,N,W), done to whole sequences x (B,L,W)."""
    assert change.at is not None  # `placed` has seen to it
    end = change.at + vectors.shape[1]
    if change.keep:
        vectors = vectors + change.keep * x[:, change.at : end]
    after = x[:, change.at if change.insert else end :]
    return torch.cat([x[:, : change.at], vectors, after], dim=1)


def kept(changes: Sequence[Change], layer: int, length: int) -> int:
    """How many first tokens of `length` aren't all replaced before `layer`."""
    tokens = at_layer(changes, layer, Tokens)
    if tokens and not (tokens[0].insert or tokens[0].keep):
        first = tokens[0]
        if first.at < length <= first.at + first.number:
            return first.at
    return length


def shifts(changes: Sequence[Change], own: torch.Tensor) -> Iterator[torch.Tensor]:
    """What every `NameShift` adds to tokens whose own index is `own` (…): (1|K,…,W)."""
    for change in changes:
        if isinstance(change, NameShift):
            vectors = change.vectors
            vectors = vectors[:, 0] if vectors.dim() == 4 else vectors.unsqueeze(0)
            n = vectors.shape[1]
            rows = F.pad(vectors, (0, 0, 0, 1))  # a row of zeros for all others
            index = torch.where((own < 0) | (own >= n), n, own)
            yield rows[:, index]


def at_layer(changes: Iterable[Change], layer: int, kind: type | tuple) -> list:
    """Those of a kind at this layer, in their order."""
    return [c for c in changes if isinstance(c, kind) and c.layer == layer]


def own_tensors(
    weights: Iterable[Weights], frozen: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors that stand in place of the `frozen` ones, in their precision.

    Raises:
        UserError: a name or shape that isn't there, or two tensors for one place.
    """
    own = {}
    for change in weights:
        for name, tensor in change.tensors.items():
            if name not in frozen:
                raise UserError(f"layer {change.layer} has no {name!r}; it has {', '.join(frozen)}")
            if tensor.shape != frozen[name].shape:
                raise UserError(
                    f"layer {change.layer}'s {name!r} is {tuple(frozen[name].shape)}, "
                    f"given {tuple(tensor.shape)}"
                )
            if name in own:
                raise UserError(f"layer {change.layer}'s {name!r} is given twice")
            own[name] = tensor.to(frozen[name].dtype)
    return own


# --- Trees of tensors: nested lists, dicts and changes, taken apart and put together ------------


def tensors_of(tree: Any) -> Iterator[torch.Tensor]:
    """Every tensor in `tree`, a module's parameters and buffers among them, in a fixed order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, nn.Module):
        yield from tree.parameters()
        yield from tree.buffers()
    elif isinstance(tree, Mapping):
        yield from tensors_of(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors_of(item)
    elif isinstance(tree, _Called):
        yield from tree.given.values()
    elif is_dataclass(tree):
        for field in fields(tree):
            yield from tensors_of(getattr(tree, field.name))


def with_tensors(tree: Any, values: Iterator[torch.Tensor]) -> Any:
    """`tree` with the next of `values` in place of each tensor that `tensors_of` gives."""
    if isinstance(tree, torch.Tensor):
        return next(values)
    if isinstance(tree, nn.Module):
        named = [name for name, _ in (*tree.named_parameters(), *tree.named_buffers())]
        given = {name: next(values) for name in named}
        return _Called(tree, given)
    if isinstance(tree, Mapping):
        return {key: with_tensors(value, values) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(with_tensors(item, values) for item in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        items = {f.name: with_tensors(getattr(tree, f.name), values) for f in fields(tree)}
        return replace(tree, **items)
    return tree


@dataclass(frozen=True, eq=False)
class _Called:
    """`module` with these tensors for its own."""

    module: nn.Module
    given: dict[str, torch.Tensor]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional_call(self.module, self.given, x)

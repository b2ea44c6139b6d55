"""The image tower, fed with prompts and changes. Shape letters: the package's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dassl.utils import UserError

from ..model import CLIP, VisionTransformer
from .block import Head, head_of, layers_of, plain_block
from .changes import (
    END,
    FEATURES,
    Change,
    NameShift,
    Read,
    Reads,
    Tokens,
    at_layer,
    check,
    first_layer,
    kept,
    placed,
    put,
)

# Without gradients nothing is kept, and chunks of this many images (at least one for each thread)
# stay within the CPU's caches.
_IMAGES_PER_CHUNK = 4


class ImageEncoder(nn.Module):
    """CLIP's image tower, a ViT's fed with prompts; shares the weights of `clip_model`."""

    def __init__(self, clip_model: CLIP, fast: bool = True) -> None:
        super().__init__()
        self.visual = clip_model.visual
        self.fast = fast

    @property
    def dtype(self) -> torch.dtype:
        """What the tower computes in."""
        return self.visual.conv1.weight.dtype

    @property
    def vit(self) -> VisionTransformer:
        """The tower.

        Raises:
            UserError: it is a ResNet, which has no tokens or layers to change.
        """
        if not isinstance(self.visual, VisionTransformer):
            raise UserError(
                "this method puts prompts into the image tower, and a ResNet takes none: "
                "set MODEL.BACKBONE.NAME to a ViT"
            )
        return self.visual

    @property
    def width(self) -> int:
        """Width of the ViT's tokens. Raises as `vit`."""
        return self.vit.conv1.out_channels

    @property
    def layers(self) -> int:
        """How many blocks the ViT has. Raises as `vit`."""
        return len(self.vit.transformer.resblocks)

    @property
    def tokens(self) -> int:
        """How many tokens an image has of its own: class token and patches."""
        return len(self.vit.positional_embedding)

    def first_layer(self, changes: Sequence[Change]) -> int:
        """The first layer that a change reaches; `layers` where none reaches a block."""
        return first_layer(changes, self.layers)

    def head(self, changes: Sequence[Change]) -> Head:
        """What follows the blocks."""
        parts = ("ln_post", self.vit.ln_post), ("proj", self.vit.proj)
        return head_of(*parts, changes, self.layers)

    def forward(
        self,
        image: torch.Tensor,
        prompts: torch.Tensor | None = None,
        deep: torch.Tensor | None = None,
        changes: Sequence[Change] = (),
        reads: Reads | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Image features, not normalized; without prompts or changes also without gradient.

        Args:
            image: (B,3,I,I).
            prompts: (N,W), short for `Tokens` inserted after the patch tokens before layer 0; or
                (K,N,W), K sets, each serving B/K consecutive images.
            deep: (J−1,N,W) or (K,J−1,N,W), short for `Tokens` in place of these N before layers
                1…J−1.
            changes: what else the tower is to do inside (changes.py).
            reads: what else is given back, by name.

        Returns:
            (B,D). With `reads` a dictionary: that as "features", and what was read.

        Raises:
            UserError: a change or read that this tower hasn't the place for.
        """
        image = image.to(self.dtype)
        if prompts is None and deep is None and not changes:
            return self._unchanged(image, reads)
        short = []
        if prompts is not None:
            short.append(Tokens(0, prompts, at=None, insert=True))
        if deep is not None:
            for i, vectors in enumerate(deep.unbind(deep.dim() - 3)):
                first = prompts is None and i == 0
                short.append(Tokens(1 + i, vectors, at=self.tokens, insert=first))
        return self._run(self.vit.embed(image), 0, [*short, *changes], reads)

    @torch.no_grad()
    def _unchanged(
        self, image: torch.Tensor, reads: Reads | None
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        if not (self.fast and isinstance(self.visual, VisionTransformer)) and reads is None:
            return self.visual(image)
        parts: list[Any] = [self._run(self.vit.embed(x), 0, (), reads) for x in self._chunks(image)]
        if reads is None:
            return torch.cat(parts)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _chunks(self, image: torch.Tensor) -> Sequence[torch.Tensor]:
        if not self.fast:
            return (image,)
        at_once = max(1, len(image))
        if image.device.type == "cpu":
            at_once = max(_IMAGES_PER_CHUNK, torch.get_num_threads())
        return image.split(at_once)

    @torch.no_grad()
    def below(self, image: torch.Tensor, layer: int) -> torch.Tensor:
        """What stands before `layer` without any change, to be kept while nothing below trains.

        image: (B,3,I,I) → (B,L,W); layer = `layers`: after the last block, the class token alone,
        (B,1,W).
        """
        if not 0 <= layer <= self.layers:
            raise UserError(f"the image tower has layers 0 to {self.layers}, not {layer}")
        chunks = self._chunks(image.to(self.dtype))
        parts: list[Any] = [self._run(self.vit.embed(x), 0, (), None, layer) for x in chunks]
        return torch.cat(parts)

    def above(
        self,
        tokens: torch.Tensor,
        layer: int,
        changes: Sequence[Change] = (),
        reads: Reads | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """From what `below` gave to the features: as `forward`, for changes from that layer on.

        Raises:
            UserError: also a change or read below that layer.
        """
        return self._run(tokens.to(self.dtype), layer, changes, reads)

    def _run(
        self,
        x: torch.Tensor,
        start: int,
        changes: Sequence[Change],
        reads: Reads | None,
        stop: int | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Tokens x (B,L,W) before layer `start` → as `forward`; with `stop` the tokens there."""
        layers, names, found = self.layers, dict(reads or {}), {}
        check(changes, names, layers, start)
        changes = placed([self._checked(change, x.shape[0]) for change in changes], x.shape[1])
        last = layers if stop is None else stop
        head = self.head(changes)

        def look(layer: int | None, x: torch.Tensor) -> None:
            for name, read in names.items():
                if read.layer == layer:
                    y = x[:, _positions(name, read, x.shape[1], start == layers)]
                    found[name] = y @ head.projection if read.projected else y

        blocks = layers_of(self.vit.transformer.resblocks, changes)
        for i in range(start, last):
            look(i, x)
            tokens = at_layer(changes, i, Tokens)
            x = _put(x, [change for change in tokens if not change.normed])
            x = self.vit.ln_pre(x) if i == 0 else x
            x = _put(x, [change for change in tokens if change.normed])
            if self.fast:
                x = blocks[i].run(x, self._needed(i, x.shape[1], changes, names, stop))[0]
            else:
                x = plain_block(blocks[i].block, blocks[i].changes, x, causal=False)
        if stop is not None:
            return x if stop < layers else x[:, :1]
        look(layers, x)
        y = head.norm(x if reads else x[:, :1])
        look(None, y)
        features = y[:, 0] @ head.projection
        return {FEATURES: features, **found} if reads is not None else features

    def _needed(
        self,
        layer: int,
        length: int,
        changes: Sequence[Change],
        reads: Reads,
        stop: int | None,
    ) -> int:
        """How many first tokens of a layer's output are used."""
        readers = [read for read in reads.values() if read.reaches(self.layers) == layer + 1]
        if layer + 1 == self.layers:
            return max([1, *(_last(read, length) for read in readers)])
        if stop == layer + 1 or readers:
            return length
        return kept(changes, layer + 1, length)

    def _checked(self, change: Change, images: int) -> Change:
        """`change` with tokens' vectors (n,N,W) in the tower's precision."""
        if isinstance(change, NameShift):
            raise UserError("an image has no class name to shift")
        if not isinstance(change, Tokens):
            return change
        vectors = change.vectors.to(self.dtype)
        vectors = vectors if vectors.dim() == 3 else vectors.unsqueeze(0)
        if vectors.dim() != 3 or vectors.shape[-1] != self.width or images % vectors.shape[0]:
            raise UserError(
                f"Tokens of shape {tuple(change.vectors.shape)} for {images} images and a tower of "
                f"width {self.width}"
            )
        return replace(change, vectors=vectors)


def _put(x: torch.Tensor, changes: Sequence[Tokens]) -> torch.Tensor:
    """`changes` done to tokens x (B,L,W)."""
    for change in changes:
        vectors = change.vectors
        # No len(x): a graph of this, such as ONNX's, is for any number of images.
        each = vectors.unsqueeze(1).expand(-1, x.shape[0] // vectors.shape[0], -1, -1)
        x = put(x, change, each.flatten(0, 1))
    return x


def _positions(name: str, read: Read, length: int, at_end: bool) -> int | slice:
    if read.at == END:
        return 0
    if at_end:
        raise UserError(f"read {name!r}: behind the last block only {END!r} is kept")
    assert not isinstance(read.at, str)  # END is the only one
    if isinstance(read.at, int) and not -length <= read.at < length:
        raise UserError(f"read {name!r}: images have positions 0 to {length - 1} there")
    return read.at


def _last(read: Read, length: int) -> int:
    """How many first tokens hold what is read."""
    if read.at == END:
        return 1
    if isinstance(read.at, int):
        return read.at + 1 if 0 <= read.at < length else length
    assert isinstance(read.at, slice)
    return (
        length
        if (read.at.stop or -1) < 0 or (read.at.start or 0) < 0
        else min(read.at.stop, length)
    )

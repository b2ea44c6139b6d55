"""Batches with image features in place of images, for image towers that no training changes.

A view is a function of (seed, epoch, index), so its features are one of that, of the file, of the
transform and of the tower. They are computed many views at a time, and kept: test features in
memory for the next evaluation of this process, all of them on disk for the next run of any method
with the same frozen tower. Where a method changes the tower from a layer on, the tokens before that
layer are its features; a teacher's logits of a view are kept the same way.

Shape letters: method.py's.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

import clip
import dassl.data
from dassl.config import CfgNode
from dassl.config.identity import cache_folder
from dassl.data import DatasetWrapper
from dassl.data.data_manager import ImageLoader
from dassl.data.samplers import EpochSampler
from dassl.utils import TensorCache, library_versions, stop_wanted
from dassl.utils.contents import status_digest

_IN_MEMORY_BYTES = 1 << 30  # of test features, in this process
_memory: OrderedDict[str, torch.Tensor] = OrderedDict()


@dataclass(frozen=True)
class Part:
    """What is kept of an image.

    encode: (V,3,I,I) → (V,…) on the device, without gradient.
    source: plain values that say what `encode` is: which tower in which precision.
    title: what it is, in a message.
    """

    encode: Callable[[torch.Tensor], torch.Tensor]
    source: dict[str, Any]
    title: str = "Image features"


class Encoder:
    """What turns images into what a run reads of them, and what that depends on.

    Args:
        cfg: of the run.
        parts: by the name they get in a batch; "img" stands in place of the images.
        device: where they are wanted.
    """

    def __init__(self, cfg: CfgNode, parts: Mapping[str, Part], device: torch.device) -> None:
        self.parts = dict(parts)
        self.device = device
        self.disk = _disk_cache(cfg)
        # Bytes of a part of a pass, beyond which it isn't kept.
        self.room = max(_IN_MEMORY_BYTES, int(cfg.DATALOADER.FEATURE_CACHE_GB * 2**30) // 4)
        # Images of one pass of a tower, once the GPU's memory didn't hold more.
        self.most: int | None = None
        self._told: set[tuple[str, str, bool]] = set()
        self._waited = self._in_vain = False

    def batches(
        self, loader: ImageLoader, at_once: int = 1, names: Iterable[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The batches of `loader` with the parts of these names, by default all.

        Of K views of an image (DATALOADER.K_TRANSFORMS) each part is a list of K.

        at_once: batches encoded together.
        """
        names = sorted(self.parts if names is None else names)  # all runs wait in one order
        keys = {name: self._key(self.parts[name], loader, at_once) for name in names}
        found = {}
        with ExitStack() as alone:
            for name, key in keys.items():
                features = self._recall(key, loader)
                if features is None and key is not None and self.disk is not None:
                    waits = partial(self._waits, name, loader)
                    alone.enter_context(self.disk.alone(key, waits))
                    features = self._recall(key, loader)  # by whoever was at it
                    self._in_vain = self._in_vain or (self._waited and features is None)
                    self._waited = False
                if features is not None:
                    self._tell(name, loader, "found")
                    # To the device at once, and cut up there: nothing then waits for it at every
                    # step. Tokens of many images have no room there.
                    found[name] = features.to(self.device) if features.dim() == 3 else features
            order = list(chain.from_iterable(_of(loader)[1]))
            if not ("img" in found and len(found) == len(names)):
                missing = {name: key for name, key in keys.items() if name not in found}
                batches = self._encoded(loader, at_once, missing)
                for name, features in found.items():
                    batches = self._with_rows(batches, name, features, order)
                yield from batches
                return
        yield from self._without_images(loader, found, order)

    def _without_images(
        self, loader: ImageLoader, found: dict[str, torch.Tensor], order: list[int]
    ) -> Iterator[dict[str, Any]]:
        """Batches of what is kept, in this order of indices."""
        views, groups = _of(loader)
        labels = torch.tensor([views.data_source[i].label for i in order]).to(self.device)
        start = 0
        for indices in groups:
            rows = slice(start, start + len(indices))
            parts = {name: self._part(features[rows]) for name, features in found.items()}
            yield {**views.metadata_of(indices), "label": labels[rows], **parts}
            start = rows.stop

    def _part(self, rows: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """(B,1,…) of one view → (B,…); (B,v,…) → v of those."""
        views = to_device(rows, self.device).unbind(1)
        return views[0] if len(views) == 1 else list(views)

    def _encoded(
        self, loader: ImageLoader, at_once: int, keys: dict[str, dict[str, Any] | None]
    ) -> Iterator[dict[str, Any]]:
        batches = iter(loader)
        kept: dict[str, list[torch.Tensor]] = {name: [] for name, key in keys.items() if key}
        for name in keys.keys() - kept.keys():
            self._tell(name, loader, "not known")
        while ahead := list(islice(batches, at_once)):
            images = [self._images(batch["img"]) for batch in ahead]
            together = torch.cat(images)  # (n,v,3,I,I)
            encoded, most = {}, self.most
            for name in keys:
                features = self._encode(self.parts[name], together.flatten(0, 1))
                encoded[name] = features.unflatten(0, together.shape[:2])
            if self.most != most:
                kept.clear()  # the keys tell of larger passes
            for name in list(kept):
                self._gather(kept, name, encoded[name], loader)
            sizes = [len(image) for image in images]
            parts = {name: features.split(sizes) for name, features in encoded.items()}
            for i, batch in enumerate(ahead):
                own = {name: self._part(features[i]) for name, features in parts.items()}
                yield {**batch, "img": self._part(images[i]), **own}
        for name, gathered in kept.items():
            key = keys[name]
            if gathered and key is not None:
                self._keep(key, torch.cat(gathered), loader)

    def _encode(self, part: Part, views: torch.Tensor) -> torch.Tensor:
        """(V,3,I,I) → (V,…), in passes that the memory holds."""
        while True:
            try:
                if self.most is None or self.most >= len(views):
                    return part.encode(views)
                return torch.cat([part.encode(some) for some in views.split(self.most)])
            except torch.cuda.OutOfMemoryError:
                tried = min(len(views), self.most or len(views))
                if tried == 1:
                    raise
            self.most = tried // 2
            print(f"{part.title}: no GPU memory for {tried} at once, so {self.most} from here on")

    def _images(self, views: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """A batch's images as (B,v,3,I,I), v the views of each."""
        stacked = torch.stack(views, dim=1) if isinstance(views, list) else views.unsqueeze(1)
        return to_device(stacked, self.device)

    def _gather(
        self,
        kept: dict[str, list[torch.Tensor]],
        name: str,
        features: torch.Tensor,
        loader: ImageLoader,
    ) -> None:
        """Add some images' features (n,v,…) to what is kept, if all of them have room."""
        if not kept[name]:
            expected = features[0].nbytes * len(_of(loader)[0])
            self._tell(name, loader, "too large" if expected > self.room else "encoded")
            if expected > self.room:
                del kept[name]
                return
        kept[name].append(features if features.dim() == 3 else features.cpu())

    def _with_rows(
        self,
        batches: Iterable[dict[str, Any]],
        name: str,
        features: torch.Tensor,
        order: list[int],
    ) -> Iterator[dict[str, Any]]:
        """The batches and their rows of `features`, which stand in this order of indices."""
        row = {index: i for i, index in enumerate(order)}
        for batch in batches:
            rows = [row[index] for index in batch["index"].tolist()]
            if rows == list(range(rows[0], rows[0] + len(rows))):
                part = features[rows[0] : rows[0] + len(rows)]
            else:
                part = features[rows]
            yield {**batch, name: self._part(part)}

    def _waits(self, name: str, loader: ImageLoader) -> bool:
        """Whether to wait (longer) for another run that encodes the same.

        Not where that gave nothing before: it can't keep them, and runs would only take turns. Nor
        when this run is to save and end.
        """
        if self._in_vain or stop_wanted():
            return False
        self._waited = True
        self._tell(name, loader, "waiting")
        return True

    def _tell(self, name: str, loader: ImageLoader, what: str) -> None:
        """Say once of the views and once of the test images where a part comes from."""
        views = _of(loader)[0].is_train
        if (name, what, views) in self._told:
            return
        self._told.add((name, what, views))
        of = "training views" if views else "test images"
        where = self.disk.folder if self.disk is not None else "memory alone"
        told = {
            "found": f"taken from {where}",
            "encoded": f"encoded, and kept in {where}",
            "waiting": "waiting for another run, which encodes them",
            "too large": "encoded, and not kept: too large for DATALOADER.FEATURE_CACHE_GB",
            "not known": "encoded, and not kept: what they depend on isn't known",
        }
        print(f"{self.parts[name].title} of the {of}: {told[what]}")

    # Keeping.

    def _key(self, part: Part, loader: ImageLoader, at_once: int) -> dict[str, Any] | None:
        """All that a part of a pass over `loader` depends on; None where it isn't known."""
        views: Any = loader.dataset
        if type(views) is not DatasetWrapper or not isinstance(loader.sampler, EpochSampler):
            return None
        drawn_anew = views.is_train and views.cfg.SEED < 0
        if drawn_anew or views.return_img0 or not callable(views.transform):
            return None
        transform = repr(views.transform)
        if " at 0x" in transform:  # it doesn't say what it does
            return None
        order = [list(indices) for indices in _of(loader)[1]]
        files = status_digest(
            [views.data_source[index].impath for batch in order for index in batch]
        )
        if files is None:
            return None
        return {
            **part.source,
            "format": 4,  # of the files: (n,v,…), v views of each image
            "views": views.k_tfm,
            "sources": code_digest(),
            "device": [self.device.type, torch.get_num_threads()],
            "versions": library_versions(),
            "input": _plain(views.cfg.INPUT),
            "transform": transform,
            "view": [views.cfg.SEED, loader.sampler.epoch] if views.is_train else [],
            "files": files,
            # Rounding depends on which views are encoded together.
            "together": [
                [len(batch) for batch in order],
                at_once,
                *([] if self.most is None else [self.most]),
            ],
        }

    def _recall(self, key: dict[str, Any] | None, loader: ImageLoader) -> torch.Tensor | None:
        if key is None:
            return None
        name = repr(key)
        features = _memory.get(name)
        if features is None and self.disk is not None:
            features = self.disk.get(key)
            if features is not None and len(features) != sum(key["together"][0]):
                return None
            if features is not None:
                _remember(name, features, loader)
        return features

    def _keep(self, key: dict[str, Any], features: torch.Tensor, loader: ImageLoader) -> None:
        if len(features) != sum(key["together"][0]):
            return  # some images were skipped: the next pass shall say so again
        features = features.cpu()
        _remember(repr(key), features, loader)
        if self.disk is not None:
            self.disk.put(key, features)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor there; a GPU takes it from pinned memory, and nobody waits for that."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _of(loader: ImageLoader) -> tuple[Any, Iterable[list[int]]]:
    """A loader's views, and the indices of its batches."""
    assert loader.batch_sampler is not None
    return loader.dataset, loader.batch_sampler


def _remember(name: str, features: torch.Tensor, loader: ImageLoader) -> None:
    """Keep test features in memory; training views are used once."""
    if _of(loader)[0].is_train:
        return
    _memory[name] = features
    while sum(kept.nbytes for kept in _memory.values()) > _IN_MEMORY_BYTES:
        _memory.popitem(last=False)


def _disk_cache(cfg: CfgNode) -> TensorCache | None:
    """The cache below DATALOADER.FEATURE_CACHE."""
    folder = cache_folder(cfg)
    if folder is None:
        return None
    return TensorCache(folder / "features", int(cfg.DATALOADER.FEATURE_CACHE_GB * 2**30))


def code_digest() -> str:
    """Of the sources that turn images into features: those of clip/ and dassl/data/."""
    return sources_digest(Path(clip.__file__).parent, Path(dassl.data.__file__).parent)


@cache
def sources_digest(*folders: Path) -> str:
    """SHA-256 of all Python sources below some folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _plain(node: CfgNode) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in node.items()}

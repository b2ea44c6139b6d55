"""Batches with image features in place of images, for image towers that no training changes.

A view is a function of (seed, epoch, index), so its features are one of that, of the file, of the
transform and of the tower. They are computed many views at a time, and kept: test features in
memory for the next evaluation of this process, all of them on disk for the next run of any method
with the same frozen tower.

Shape letters: method.py's.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

import clip
from dassl.config import CfgNode
from dassl.config.identity import cache_folder
from dassl.data import DatasetWrapper
from dassl.data.data_manager import ImageLoader
from dassl.data.samplers import EpochSampler
from dassl.utils import TensorCache, library_versions, stop_wanted
from dassl.utils.contents import status_digest

_IN_MEMORY_BYTES = 1 << 30  # of test features, in this process
_memory: OrderedDict[str, torch.Tensor] = OrderedDict()


class Encoder:
    """What turns images into features, and what those depend on.

    Args:
        cfg: of the run.
        encode: (V,3,I,I) → (V,D) on the device, without gradient.
        device: where the features are wanted.
        tower: plain values that say which tower in which precision `encode` is.
    """

    def __init__(
        self,
        cfg: CfgNode,
        encode: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        tower: dict[str, Any],
    ) -> None:
        self.encode = encode
        self.device = device
        self.tower = tower
        self.disk = _disk_cache(cfg)
        self._told: set[tuple[str, bool]] = set()
        self._waited = self._in_vain = False

    def batches(
        self, loader: ImageLoader, at_once: int = 1, name: str = "img"
    ) -> Iterator[dict[str, Any]]:
        """The batches of `loader`, `at_once` of them encoded together.

        name: of the features in a batch; "img" puts them in place of the images.
        """
        key = self._key(loader, at_once)
        features = self._recall(key, loader)
        with ExitStack() as alone:
            if features is None and key is not None and self.disk is not None:
                alone.enter_context(self.disk.alone(key, lambda: self._waits(loader)))
                features = self._recall(key, loader)  # by whoever was at it
                self._in_vain = self._in_vain or (self._waited and features is None)
                self._waited = False
            kept = "encoded" if key else "not kept"
            self._tell(loader, kept if features is None else "found")
            if features is None:
                yield from self._encoded(loader, at_once, name, key)
                return
        # To the device at once, and cut up there: nothing then waits for it at every step.
        features = features.to(self.device)
        views, groups = _of(loader)
        order = list(chain.from_iterable(groups))
        if name != "img":
            yield from _with_rows(loader, name, features, order)
            return
        source = views.data_source
        labels = torch.tensor([source[index].label for index in order]).to(self.device)
        start = 0
        for indices in groups:
            rows = slice(start, start + len(indices))
            metadata = views.metadata_of(indices)
            yield {**metadata, "label": labels[rows], name: features[rows]}
            start = rows.stop

    def _encoded(
        self, loader: ImageLoader, at_once: int, name: str, key: dict[str, Any] | None
    ) -> Iterator[dict[str, Any]]:
        batches = iter(loader)
        all_features = []
        while ahead := list(islice(batches, at_once)):
            images = [batch["img"].to(self.device, non_blocking=True) for batch in ahead]
            features = self.encode(torch.cat(images))
            all_features.append(features)
            parts = features.split([len(batch["img"]) for batch in ahead])
            for batch, image, part in zip(ahead, images, parts, strict=True):
                yield {**batch, "img": image, name: part}
        if key is not None and all_features:
            self._keep(key, torch.cat(all_features), loader)

    def _waits(self, loader: ImageLoader) -> bool:
        """Whether to wait (longer) for another run that encodes the same.

        Not where that gave nothing before: it can't keep them, and runs would only take turns. Nor
        when this run is to save and end.
        """
        if self._in_vain or stop_wanted():
            return False
        self._waited = True
        self._tell(loader, "waiting")
        return True

    def _tell(self, loader: ImageLoader, what: str) -> None:
        """Say once of the views and once of the test images where their features come from."""
        views = _of(loader)[0].is_train
        if (what, views) in self._told:
            return
        self._told.add((what, views))
        of = "training views" if views else "test images"
        where = self.disk.folder if self.disk is not None else "memory alone"
        told = {
            "found": f"taken from {where}",
            "encoded": f"encoded, and kept in {where}",
            "waiting": "waiting for another run, which encodes them",
            "not kept": "encoded, and not kept: what they depend on isn't known",
        }
        print(f"Image features of the {of}: {told[what]}")

    # Keeping.

    def _key(self, loader: ImageLoader, at_once: int) -> dict[str, Any] | None:
        """All that the features of a pass over `loader` depend on; None where it isn't known."""
        views: Any = loader.dataset
        if type(views) is not DatasetWrapper or not isinstance(loader.sampler, EpochSampler):
            return None
        drawn_anew = views.is_train and views.cfg.SEED < 0
        if drawn_anew or views.k_tfm > 1 or views.return_img0 or not callable(views.transform):
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
            **self.tower,
            "format": 3,  # of the files
            "sources": code_digest(),
            "device": [self.device.type, torch.get_num_threads()],
            "versions": library_versions(),
            "input": _plain(views.cfg.INPUT),
            "transform": transform,
            "view": [views.cfg.SEED, loader.sampler.epoch] if views.is_train else [],
            "files": files,
            # Rounding depends on which views are encoded together.
            "together": [[len(batch) for batch in order], at_once],
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


class NextEpoch:
    """Epochs of encoded batches, the next one's encoded in a thread while this one's are used.

    Args:
        encoder: encodes them.
        loader: of the training images. Its workers draw the views: in this process they would draw
            from the generators that training draws from.
        at_once: batches encoded together.
        epochs: how many there are.
    """

    def __init__(self, encoder: Encoder, loader: ImageLoader, at_once: int, epochs: int) -> None:
        self.encoder = encoder
        self.loader = loader
        self.at_once = at_once
        self.epochs = epochs
        self._next: tuple[int, Future] | None = None

    def batches(self, epoch: int) -> list[dict[str, Any]]:
        """The batches of an epoch (from 0), all encoded; the next epoch is begun."""
        if self._next is not None and self._next[0] == epoch:
            batches = self._next[1].result()
        else:
            batches = self._encode(epoch)
        if epoch + 1 < self.epochs:
            self._next = epoch + 1, _beside.submit(self._encode, epoch + 1)
        return batches

    def _encode(self, epoch: int) -> list[dict[str, Any]]:
        self.loader.set_epoch(epoch)
        device = self.encoder.device
        if device.type != "cuda":
            return list(self.encoder.batches(self.loader, self.at_once))
        training = torch.cuda.default_stream(device)
        beside = _stream(device)
        with torch.cuda.stream(beside):
            batches = list(self.encoder.batches(self.loader, self.at_once))
        beside.synchronize()
        for batch in batches:
            for value in batch.values():
                if torch.is_tensor(value) and value.is_cuda:
                    value.record_stream(training)  # its memory is in use there until freed here
        return batches


# One thread and one stream for all runs of this process: together they would only share the GPU.
_beside = ThreadPoolExecutor(1, thread_name_prefix="views")


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _with_rows(
    batches: Iterable[dict[str, Any]], name: str, features: torch.Tensor, order: list[int]
) -> Iterator[dict[str, Any]]:
    """The batches and their rows of `features`, which stand in this order of indices."""
    row = {index: i for i, index in enumerate(order)}
    for batch in batches:
        rows = [row[index] for index in batch["index"].tolist()]
        if rows == list(range(rows[0], rows[0] + len(rows))):
            part = features[rows[0] : rows[0] + len(rows)]
        else:
            part = features[rows]
        yield {**batch, name: part}


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


@cache
def code_digest() -> str:
    """Of the sources that turn images into features: those of clip/."""
    digest = hashlib.sha256()
    for path in sorted(Path(clip.__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _plain(node: CfgNode) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in node.items()}

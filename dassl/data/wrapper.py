"""From a `Datum` to the tensors of its views."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from dassl.config import CfgNode
from dassl.utils import UserError, read_image, resolve_seed
from dassl.utils.modules import shared

from .datasets import Datum
from .decoded import DecodedImages
from .transforms.usual import Compose, Normalize, Resize, ToTensor

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class BadImage:
    """Stands in a batch for an image that could not be read."""

    impath: str
    reason: str


@contextmanager
def generators_at(*key: int) -> Iterator[None]:
    """Seed the generators of python, numpy and torch (CPU) from `key`; restore them afterwards."""
    with generators_restored():
        seed_generators(*key)
        yield


@contextmanager
def generators_restored() -> Iterator[None]:
    """Leave the generators as they were: numpy's state alone takes longer than seeding all."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def seed_generators(*key: int) -> None:
    """Seed the generators of python, numpy and torch (CPU) from `key`."""
    first, second = (int(word) for word in np.random.SeedSequence(key).generate_state(2))
    random.seed(first)
    np.random.seed(first)
    # Not torch.manual_seed: a view has no business with the GPUs' generators.
    torch.default_generator.manual_seed(second)


class DatasetWrapper(Dataset):
    """Items of a list of images: "img", "label", "domain", "impath", "index".

    A view is a function of (seed, epoch, index) alone, whichever process draws it. With a list of
    transforms the further views are "img2", "img3", …; with DATALOADER.K_TRANSFORMS above 1 a
    training view is a list; with DATALOADER.RETURN_IMG0 "img0" is the plain resized image.

    Args:
        cfg: the config.
        data_source: the images.
        transform: from a PIL image to a tensor, or a list of such; None gives no "img".
        is_train: whether `epoch` and K_TRANSFORMS count.
    """

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence[Datum],
        transform: Transform | Sequence[Transform] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise UserError(
                f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform "
                "(INPUT.NO_TRANSFORM)"
            )
        self._seed = resolve_seed(cfg.SEED)
        # Shared memory: workers that outlive an epoch see the change.
        self._epoch = shared(torch.zeros((), dtype=torch.int64))
        node = cfg.DATALOADER
        room = int(node.DECODED_GB * 2**30) if is_train else 0
        # Test images are read once; their workers come and go.
        self.decoded = DecodedImages(len(data_source), room, node.NUM_WORKERS if is_train else 0)
        self._plain = _plain_transform(cfg) if self.return_img0 else None

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch (from 0) the next views belong to."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one item. Raises UserError if its image cannot be read."""
        return self.item(index, int(self._epoch) if self.is_train else 0)

    def item(self, index: int, epoch: int) -> dict[str, Any]:
        """Return one item as an epoch has it. Raises UserError if its image cannot be read."""
        with generators_restored():
            return self._drawn(index, epoch)

    def _drawn(self, index: int, epoch: int) -> dict[str, Any]:
        """As `item`; the generators are left somewhere."""
        image = self._read(index)
        item = self.metadata(index)
        seed_generators(self._seed, epoch, index)
        item |= self._views(image)
        if self._plain is not None:
            item["img0"] = self._plain(image)
        return item

    def metadata(self, index: int) -> dict[str, Any]:
        """Return what is known of an item without its image."""
        datum = self.data_source[index]
        return {
            "label": datum.label,
            "domain": datum.domain,
            "impath": datum.impath,
            "index": index,
        }

    def metadata_of(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the `metadata` of a batch, collated as a loader does."""
        return default_collate([self.metadata(index) for index in indices])

    def _read(self, index: int) -> Image.Image:
        """Return an image; a training image stays decoded while there is room for it."""
        image = self.decoded.get(index)
        if image is None:
            image = read_image(self.data_source[index].impath)
            self.decoded.add(index, image)
        return image

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any] | BadImage]:
        """Return the items of a batch; what to do about a bad image is the loader's decision.

        (An exception would reach the main process wrapped in a worker's traceback.)
        """
        items: list[dict[str, Any] | BadImage] = []
        epoch = int(self._epoch) if self.is_train else 0
        ours, own = DatasetWrapper, type(self)
        usual = own.__getitem__ is ours.__getitem__ and own.item is ours.item
        with generators_restored():
            for index in indices:
                try:
                    items.append(self._drawn(index, epoch) if usual else self[index])
                except UserError as error:
                    items.append(BadImage(self.data_source[index].impath, str(error)))
        return items

    def _views(self, image: Image.Image) -> dict[str, Any]:
        if self.transform is None:
            return {}
        if not isinstance(self.transform, (list, tuple)):
            return {"img": self._apply(self.transform, image)}
        return {
            "img" if i == 0 else f"img{i + 1}": self._apply(transform, image)
            for i, transform in enumerate(self.transform)
        }

    def _apply(self, transform: Transform, image: Image.Image) -> torch.Tensor | list[torch.Tensor]:
        views = [transform(image) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views


def _plain_transform(cfg: CfgNode) -> Transform:
    node = cfg.INPUT
    steps: list[Any] = [Resize(node.SIZE, node.INTERPOLATION), ToTensor()]
    if "normalize" in node.TRANSFORMS:
        steps.append(Normalize(mean=node.PIXEL_MEAN, std=node.PIXEL_STD))
    return Compose(steps)

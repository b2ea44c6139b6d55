"""The training images as a method sees them before its first step: `Method.prepare`.

Shape letters: method.py's; n training images in the order of the data set's list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch

from dassl.data import DatasetWrapper
from dassl.data.corruptions import Corrupt
from dassl.data.data_manager import ImageLoader, build_data_loader
from dassl.data.transforms import build_transform
from dassl.utils import UserError

from .feature_cache import Encoder


class TrainingData:
    """A run's training images, each once.

    Args:
        cfg: of the run.
        dataset: its data set, with `train_x` and all other lists.
        encoder: has the unprompted tower's features as its part "img"; None: nothing is kept.
        encode: (V,3,I,I) → (V,D), the same.
        device: where tensors are wanted.
    """

    def __init__(
        self,
        cfg: Any,
        dataset: Any,
        encoder: Encoder | None,
        encode: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
    ) -> None:
        self.cfg = cfg
        self.dataset = dataset
        self.encoder = encoder
        self.encode = encode
        self.device = device

    def __len__(self) -> int:
        return len(self.dataset.train_x)

    @cached_property
    def labels(self) -> torch.Tensor:
        """(n,) indices of classes."""
        return torch.tensor([item.label for item in self.dataset.train_x], device=self.device)

    def images(self, epoch: int | None = None) -> Iterator[torch.Tensor]:
        """(B,3,I,I) at a time: as in a test, or the (first) views that an epoch draws, from 0."""
        for batch in self._loader(epoch):
            image = batch["img"]
            yield (image[0] if isinstance(image, list) else image).to(self.device)

    def features(self, epoch: int | None = None, corrupt: Corrupt | None = None) -> torch.Tensor:
        """(n,D), not normalized, of `images(epoch)` by the unprompted tower.

        They come from the feature cache where there is one.

        corrupt: what happens to images seen as in a test.
        """
        return self._features(self._loader(epoch, corrupt=corrupt))

    def validation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As `features()` and `labels`, of the run's validation images.

        Raises:
            UserError: there are none, or they are the test images.
        """
        val = self.dataset.val or []
        if not val:
            raise UserError(f"{self.cfg.DATASET.NAME} has no validation images to choose by")
        if {item.impath for item in val} & {item.impath for item in self.dataset.test or []}:
            raise UserError(f"{self.cfg.DATASET.NAME}'s validation images are test images")
        labels = torch.tensor([item.label for item in val], device=self.device)
        return self._features(self._loader(None, val)), labels

    def _features(self, loader: ImageLoader) -> torch.Tensor:
        if self.encoder is None:
            images = (batch["img"] for batch in loader)
            parts = [
                self.encode((x[0] if isinstance(x, list) else x).to(self.device)) for x in images
            ]
            return torch.cat(parts)
        parts = [batch["img"] for batch in self.encoder.batches(loader, names=["img"])]
        return torch.cat([part[0] if isinstance(part, list) else part for part in parts])

    def _loader(
        self, epoch: int | None, items: Any = None, corrupt: Corrupt | None = None
    ) -> ImageLoader:
        drawn = epoch is not None
        loader = build_data_loader(
            self.cfg,
            data_source=self.dataset.train_x if items is None else items,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=build_transform(self.cfg, is_train=drawn, corrupt=corrupt),
            is_train=False,  # no image is left out
            dataset_wrapper=_Drawn if drawn else None,
        )
        loader.set_epoch(epoch or 0)
        return loader


def _Drawn(cfg: Any, items: Any, transform: Any, is_train: bool) -> DatasetWrapper:
    """Training views, whatever the loader is."""
    return DatasetWrapper(cfg, items, transform, is_train=True)

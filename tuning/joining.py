"""Training images that join a batch because the method asks for them: `Method.further_images`.

A joining image comes as the epoch's own view of it. Where the image tower is untouched, the
features of an epoch's views are at hand before its first step, and joining costs no pass of it.

Shape letters: method.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dassl.utils import UserError

from .step import Batch

if TYPE_CHECKING:
    from .inputs import Inputs


class Joining:
    """Adds the images that a run's method asks for to its batches.

    Args:
        run: the trainer.
    """

    def __init__(self, run: Inputs) -> None:
        self.run = run
        # Features (D,) of an epoch's views by their places, where they are what is kept.
        self._rows: dict[int, torch.Tensor] = {}
        self._epoch = -1

    @cached_property
    def places(self) -> list[list[int]]:
        """The places in the training list of each class's images."""
        run = self.run
        found: list[list[int]] = [[] for _ in run.method.classes.keys]
        for place, item in enumerate(run.dm.dataset.train_x or ()):
            found[item.label].append(place)
        return found

    def noted(self, batches: Iterable[dict]) -> Iterable[dict]:
        """The epoch's batches; of features the whole epoch's are noted before the first."""
        if self.run.layer is not None or self.run.encoder is None:
            return batches
        return self._all_noted(batches)

    def _all_noted(self, batches: Iterable[dict]) -> Iterator[dict]:
        whole = list(batches)
        self._epoch = self.run.epoch
        self._rows = {
            place: row
            for batch in whole
            for place, row in zip(batch["index"].tolist(), batch["img"], strict=True)
        }
        yield from whole

    @torch.no_grad()
    def joined(self, batch: dict, inputs: Batch) -> Batch:
        """What a step takes of the batch and of the images that join it, these last."""
        run = self.run
        generator = run.generator_of(batch)
        with run.autocast():
            asked = run.method.further_images(
                inputs["image"], inputs["label"], self.places, generator
            )
        of_image = {
            name
            for name in inputs
            if name == "image" or (run.encoder is not None and name in run.encoder.parts)
        }
        encoded = inputs["image"].dim() < 4
        found = [(place, rows) for place in asked if (rows := self._of(place, of_image, encoded))]
        if not found:
            return inputs
        views = run._loader_x.dataset
        labels = [views.data_source[place].label for place, _ in found]
        label = torch.tensor(labels, device=inputs["label"].device)
        further = {name: torch.stack([rows[name] for _, rows in found]) for name in of_image}
        further["label"] = label.to(inputs["label"].dtype)
        return {
            name: torch.cat([value, further[name].to(value)]) if name in further else value
            for name, value in inputs.items()
        }

    def _of(self, place: int, names: set[str], encoded: bool) -> dict[str, torch.Tensor]:
        """What an image's view is to a step, by name; {} if it can't be read and is left out."""
        run = self.run
        if names == {"image"} and self._epoch == run.epoch and place in self._rows and encoded:
            return {"image": self._rows[place]}
        try:
            view = run._loader_x.dataset.item(place, run.epoch)["img"]
        except UserError:
            if run.cfg.INPUT.ON_DECODE_ERROR == "fail":
                raise
            return {}
        image = run._to_device(view[0] if isinstance(view, list) else view)[None]
        parts = run.encoder.parts if run.encoder is not None else {}
        # One at a time: what rounding gives then depends on no other image.
        found = {name: parts[name].encode(image)[0] for name in names if name != "image"}
        return {**found, "image": (parts["img"].encode(image) if encoded else image)[0]}

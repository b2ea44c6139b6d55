"""FGVC-Aircraft: aircraft variants (Maji et al., 2013)."""

import os

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError

from .annotations import read_lines
from .base import ImageDataset
from .splits import Items, Lists


@DATASET_REGISTRY.register()
class FGVCAircraft(ImageDataset):
    """`images/<number>.jpg`; the official lists name the variant, `variants.txt` orders them."""

    dataset_dir = "fgvc_aircraft"
    image_dir = "images"
    template = "a photo of a {}, a type of aircraft."
    # What TCP's class features are of, and what its context stands in.
    other_templates = {
        "skipt": "a bright photo of a {}, a type of aircraft.",
        "tcp": "a photo of an aircraft {}.",
        "tcp_context": "a photo of a {}, a type of aircraft.",
    }
    sizes = (100, 3334, 3333, 3333)

    def read_official(self) -> Lists:
        """Return the official lists; labels are line numbers of `variants.txt`."""
        variants = read_lines(os.path.join(self.dataset_dir, "variants.txt"))
        labels = {variant: label for label, variant in enumerate(variants)}
        train, val, test = (self._read(part, labels) for part in ("train", "val", "test"))
        return train, val, test

    def _read(self, part: str, labels: dict[str, int]) -> Items:
        """Read lines such as `1025794 707-320`."""
        path = os.path.join(self.dataset_dir, f"images_variant_{part}.txt")
        items = []
        for line in read_lines(path):
            image, _, variant = line.partition(" ")
            if variant not in labels:
                raise UserError(f"{path}: the variant of '{line}' is not in variants.txt")
            impath = os.path.join(self.image_dir, f"{image}.jpg")
            items.append(Datum(impath=impath, label=labels[variant], classname=variant))
        return items

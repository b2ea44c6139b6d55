"""Oxford-IIIT Pet: 37 breeds of cats and dogs (Parkhi et al., CVPR 2012)."""

import os

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError

from .annotations import read_lines
from .base import ImageDataset
from .splits import Items, Lists


@DATASET_REGISTRY.register()
class OxfordPets(ImageDataset):
    """`images/<Breed>_<n>.jpg`; `annotations/` lists them with the breed's number."""

    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    template = "a photo of a {}, a type of pet."
    other_templates = {"skipt": "a bad photo of a {}, a type of pet."}
    sizes = (37, 2944, 736, 3669)

    def read_official(self) -> Lists:
        """Return `test.txt` as test; validation images are drawn from `trainval.txt`."""
        return *self.split_trainval(self._read("trainval.txt")), self._read("test.txt")

    def _read(self, name: str) -> Items:
        """Read lines such as `Abyssinian_100 1 1 1`: image, breed from 1, species, breed again."""
        path = os.path.join(self.dataset_dir, "annotations", name)
        items = []
        for line in read_lines(path):
            try:
                image, breed, _species, _within = line.split()
                label = int(breed) - 1
            except ValueError:
                raise UserError(f"{path}: '{line}' is not 'image class species breed'") from None
            items.append(
                Datum(
                    impath=os.path.join(self.image_dir, f"{image}.jpg"),
                    label=label,
                    classname=image.rpartition("_")[0].lower(),
                )
            )
        return items

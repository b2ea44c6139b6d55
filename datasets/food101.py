"""Food-101: dishes (Bossard et al., ECCV 2014)."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import ImageDataset
from .splits import Lists


@DATASET_REGISTRY.register()
class Food101(ImageDataset):
    """`images/<class>/`; the field doesn't use the official lists in `meta/`."""

    dataset_dir = "food-101"
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
    template = "a photo of {}, a type of food."
    other_templates = {
        "skipt": "a photo of the nice {}.",
        "tcp": "a photo of a {}, a type of food.",
    }
    sizes = (101, 50500, 20200, 30300)

    def read_official(self) -> Lists:
        """Draw the split from the class folders."""
        return self.read_and_split_data(self.image_dir)

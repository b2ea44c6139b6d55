"""Caltech 101: objects (Fei-Fei et al., CVPR Workshops 2004)."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import ImageDataset
from .splits import Lists


@DATASET_REGISTRY.register()
class Caltech101(ImageDataset):
    """`101_ObjectCategories/<class>/`, without the background and the second set of faces."""

    dataset_dir = "caltech-101"
    other_templates = {"skipt": "itap of a {}."}
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    sizes = (100, 4128, 1649, 2465)

    left_out = ("BACKGROUND_Google", "Faces_easy")
    renamed = {
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "airplanes": "airplane",
    }

    def read_official(self) -> Lists:
        """Draw the split from the class folders; there are no official lists."""
        return self.read_and_split_data(
            self.image_dir, ignored=self.left_out, new_cnames=self.renamed
        )

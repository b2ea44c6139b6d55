"""Oxford Flowers 102 (Nilsback and Zisserman, ICVGIP 2008)."""

import os
from collections import defaultdict

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, check_kind, read_json

from .annotations import read_mat
from .base import ImageDataset
from .splits import Lists, extend, split_class


@DATASET_REGISTRY.register()
class OxfordFlowers(ImageDataset):
    """`jpg/image_<n>.jpg`, `imagelabels.mat` (image n has label n) and `cat_to_name.json`.

    The field doesn't use the official split in `setid.mat`.
    """

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    template = "a photo of a {}, a type of flower."
    other_templates = {"skipt": "a close-up photo of a {}."}
    sizes = (102, 4093, 1633, 2463)

    def read_official(self) -> Lists:
        """Draw the split from `imagelabels.mat`, with the names of `cat_to_name.json`."""
        labels = read_mat(os.path.join(self.dataset_dir, "imagelabels.mat"), "labels")
        names_path = os.path.join(self.dataset_dir, "cat_to_name.json")
        names = read_json(names_path, dict)
        by_label = defaultdict(list)
        for number, label in enumerate(map(int, labels.flatten()), start=1):
            if str(label) not in names:
                raise UserError(f"{names_path} has no name for class {label}")
            impath = os.path.join(self.image_dir, f"image_{number:05d}.jpg")
            name = check_kind(names[str(label)], str, f"{names_path}: the name of class {label}")
            by_label[label].append(Datum(impath=impath, label=label - 1, classname=name))
        lists: Lists = ([], [], [])
        for label, items in by_label.items():
            extend(lists, split_class(items, f"class {label}"))
        return lists

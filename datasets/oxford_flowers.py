"""Oxford Flowers 102 (Nilsback and Zisserman, ICVGIP 2008)."""

import os
from collections import defaultdict

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, read_json

from .base import ImageDataset, Lists
from .files import read_mat


@DATASET_REGISTRY.register()
class OxfordFlowers(ImageDataset):
    """`jpg/image_<n>.jpg`, `imagelabels.mat` (image n has label n) and `cat_to_name.json`.

    The field doesn't use the official split in `setid.mat`.
    """

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    template = "a photo of a {}, a type of flower."
    sizes = (102, 4093, 1633, 2463)

    def read_official(self) -> Lists:
        labels = read_mat(os.path.join(self.dataset_dir, "imagelabels.mat"), "labels")
        names_path = os.path.join(self.dataset_dir, "cat_to_name.json")
        names = read_json(names_path)
        by_label = defaultdict(list)
        for number, label in enumerate(labels.flatten(), start=1):
            by_label[int(label)].append(os.path.join(self.image_dir, f"image_{number:05d}.jpg"))
        lists: Lists = ([], [], [])
        for label, paths in by_label.items():
            if str(label) not in names:
                raise UserError(f"{names_path} has no name for class {label}")
            for items, part in zip(lists, self.split_class(paths, f"class {label}"), strict=True):
                items.extend(
                    Datum(impath=path, label=label - 1, classname=names[str(label)])
                    for path in part
                )
        return lists

"""ImageNet, ILSVRC 2012 (Deng et al., CVPR 2009; Russakovsky et al., IJCV 2015)."""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from io import BytesIO
from typing import IO

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, open_file
from dassl.utils.reading import TEXT_LIMIT

from .annotations import (
    class_folders,
    find_file,
    has_folders,
    image_files,
    read_csv,
    read_lines,
    read_mat,
)
from .base import ImageDataset
from .splits import Items, Lists, class_items

CLASSNAMES = "classnames.txt"
# Where `train/` and `val/` lie: CoOp's layout, torchvision's, Kaggle's.
IMAGE_DIRS = ("images", ".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def label_order(classnames: dict[str, str]) -> dict[str, str]:
    """Return the classes as they are numbered: by WordNet id."""
    return dict(sorted(classnames.items()))


def read_classnames(path: str) -> dict[str, str]:
    """Return display names by WordNet id, in the file's order, from `n01440764 tench`."""
    return dict(line.partition(" ")[::2] for line in read_lines(path))


def folder_items(
    folder: str, classnames: dict[str, str], labels: dict[str, int] | None = None
) -> Items:
    """Return the images of a folder of WordNet-id folders, sorted by class and name.

    `labels` numbers the folders; without it they are numbered as they are sorted. Raises UserError
    for a folder without a name, a folder without a label and a label without a folder.
    """
    ids = class_folders(folder)
    labels = labels or {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    odd = sorted(set(labels).symmetric_difference(ids))
    if odd:
        raise UserError(
            f"{folder} and the training folder do not hold the same classes: "
            f"{len(odd)} differ, first {odd[0]}; extract the missing ones or remove the others"
        )
    return [
        item
        for wordnet_id in ids
        for item in class_items(
            os.path.join(folder, wordnet_id),
            labels[wordnet_id],
            name_of(wordnet_id, classnames, folder),
            wordnet_id,
        )
    ]


def name_of(wordnet_id: str, classnames: dict[str, str], where: str) -> str:
    """Return the display name of a class. Raises UserError if it has none."""
    if wordnet_id not in classnames:
        raise UserError(f"class {wordnet_id} of {where} is not in {CLASSNAMES}")
    return classnames[wordnet_id]


@DATASET_REGISTRY.register()
class ImageNet(ImageDataset):
    """`train/<WordNet id>/` and `val/`, in CoOp's, torchvision's or Kaggle's folders.

    The validation set is the test set; `val/` holds class folders, or the 50,000 files with
    Kaggle's `LOC_val_solution.csv` or the official development kit. Classes are the sorted
    folders, named by `classnames.txt`; their identity is the WordNet id, since names may be equal.
    """

    dataset_dir = "imagenet"
    template_joins_ensembles = False  # the general templates were selected on it
    sizes = (1000, 1281167, 0, 50000)
    listed_from_disk = True
    how_to_get = "python scripts/prepare_data.py {name} --root {root} says what to get"

    read_classnames = staticmethod(read_classnames)  # readers of the CoOp family call it

    def all_classes(self, items: Items) -> dict[str, str]:
        """Return all of `classnames.txt`, whichever folders are there."""
        return label_order(read_classnames(os.path.join(self.dataset_dir, CLASSNAMES)))

    def find_image_dir(self) -> str:
        """Return the first of `IMAGE_DIRS` that holds `train/`."""
        there = (d for d in IMAGE_DIRS if os.path.isdir(os.path.join(self.dataset_dir, d, "train")))
        return next(there, IMAGE_DIRS[0])

    def read_official(self) -> Lists:
        """Return train, nothing, and the validation images as test.

        Raises UserError if `val/` has other classes than `train/`, or their classes aren't known.
        """
        classnames = read_classnames(os.path.join(self.dataset_dir, CLASSNAMES))
        train = folder_items(os.path.join(self.image_dir, "train"), classnames)
        labels = {item.class_key: item.label for item in train}
        val_dir = os.path.join(self.image_dir, "val")
        items = folder_items if has_folders(val_dir) else self._flat_items
        test = items(val_dir, classnames, labels)
        return train, [], test

    def roles(self, train: Items, val: Items, test: Items) -> Lists:
        """Return the test list as validation images too, as the field does."""
        return train, test, test

    def _flat_items(self, folder: str, classnames: dict[str, str], labels: dict[str, int]) -> Items:
        """Return the files of a flat `val/` in the order that class folders would give."""
        truth = self._kaggle_truth() or self._devkit_truth()
        items = []
        for name in image_files(folder):
            number = re.search(r"(\d{8})\.", name)
            wordnet_id = truth.get(int(number[1])) if number else None
            if wordnet_id not in labels:
                raise UserError(f"the class of {os.path.join(folder, name)} is not known")
            items.append(
                Datum(
                    impath=os.path.join(folder, name),
                    label=labels[wordnet_id],
                    classname=name_of(wordnet_id, classnames, folder),
                    class_key=wordnet_id,
                )
            )
        return sorted(items, key=lambda item: item.label)

    def _kaggle_truth(self) -> dict[int, str]:
        """Return WordNet ids by image number from `ILSVRC2012_val_00000001,n01751748 1 2 3 4`."""
        path = self._find("LOC_val_solution.csv")
        if not path:
            return {}
        rows = [row for row in read_csv(path) if len(row) == 2 and row[0] != "ImageId"]
        try:
            return {int(image.rpartition("_")[2]): boxes.split()[0] for image, boxes in rows}
        except (ValueError, IndexError) as error:
            raise UserError(f"{path} is not Kaggle's list of images: {error}") from None

    def _devkit_truth(self) -> dict[int, str]:
        """Return WordNet ids by image number: line n holds the number of image n's class."""
        with self._devkit_file(TRUTH) as file:
            numbers = file.read().split()
        with self._devkit_file("meta.mat") as file:
            synsets = read_mat(file, "synsets").flatten()
        try:
            ids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
            return {image: ids[int(number)] for image, number in enumerate(numbers, start=1)}
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{DEVKIT}: its {TRUTH} and meta.mat don't fit: {error}") from None

    def _devkit_file(self, name: str) -> IO[bytes]:
        """Open a file of the development kit, unpacked or in its archive."""
        path = self._find(name)
        if path:
            return open_file(path)
        archive = self._find(DEVKIT)
        if archive:
            try:
                with open_file(archive) as file, tarfile.open(fileobj=file) as tar:
                    for member in tar:
                        if member.isfile() and os.path.basename(member.name) == name:
                            return BytesIO(tar.extractfile(member).read(TEXT_LIMIT))
            except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
                raise UserError(f"{archive} is damaged: {error}") from None
        raise UserError(
            f"{self.image_dir}/val holds no class folders, and the classes of its files are not "
            f"known: put {DEVKIT} or Kaggle's LOC_val_solution.csv into {self.dataset_dir}"
        )

    def _find(self, name: str) -> str | None:
        """Return the path of a file in the data set's folder, not looking among the images."""
        for folder, inside, files in os.walk(self.dataset_dir):
            if name in files:
                return os.path.join(folder, name)
            inside[:] = sorted(set(inside) - {"train", "val", "test"})
        return None


class ImageNetVariant(ImageDataset):
    """Test images of ImageNet classes: no training images, so shots mean nothing.

    Classes are the sorted folders, numbered from 0; the identity is the WordNet id.
    """

    listed_from_disk = True

    def read_official(self) -> Lists:
        """Return test images alone."""
        return [], [], folder_items(self.image_dir, self.classnames_of_ids())

    def all_classes(self, items: Items) -> dict[str, str]:
        """Return ImageNet's, of which a variant may hold fewer."""
        return label_order(self.classnames_of_ids())

    def classnames_of_ids(self) -> dict[str, str]:
        """Return ImageNet's class names, from this folder or ImageNet's beside it."""
        beside = os.path.join("..", ImageNet.dataset_dir)
        return read_classnames(find_file(self.dataset_dir, ("", beside), CLASSNAMES))

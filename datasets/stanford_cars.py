"""Stanford Cars: makes, models and years (Krause et al., ICCV Workshops 2013)."""

import os

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .annotations import find_file, read_mat
from .base import ImageDataset
from .splits import Items, Lists


@DATASET_REGISTRY.register()
class StanfordCars(ImageDataset):
    """`cars_train/` and `cars_test/` with the labels in MATLAB files.

    The paths in the split file start at the data set's folder. The year moves to the front of the
    name: `AM General Hummer SUV 2000` becomes `2000 AM General Hummer SUV`.
    """

    dataset_dir = "stanford_cars"
    split_file = "split_zhou_StanfordCars.json"
    other_templates = {
        "skipt": "a photo of the {}, a type of car.",
        "tcp_context": "a photo of a {}, a type of car",  # without a dot
    }
    sizes = (196, 6509, 1635, 8041)

    def read_official(self) -> Lists:
        """Return the official test; validation images are drawn from the training list."""
        names = [str(name) for name in self._read_mat("cars_meta.mat", "class_names").flatten()]
        trainval = self._read("cars_train", "cars_train_annos.mat", names)
        test = self._read("cars_test", "cars_test_annos_withlabels.mat", names)
        return *self.split_trainval(trainval), test

    def _read(self, folder: str, annotations: str, names: list[str]) -> Items:
        items = []
        for record in self._read_mat(annotations, "annotations").flatten():
            label = int(record["class"]) - 1
            *model, year = names[label].split(" ")
            items.append(
                Datum(
                    impath=os.path.join(self.image_dir, folder, str(record["fname"])),
                    label=label,
                    classname=" ".join([year, *model]),
                )
            )
        return items

    def _read_mat(self, name: str, variable: str):
        """Read a file of the devkit; copies of the data keep some of them beside it."""
        folders = ("devkit", "")
        return read_mat(find_file(self.dataset_dir, folders, name), variable)

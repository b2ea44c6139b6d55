"""SUN397: scenes (Xiao et al., CVPR 2010)."""

import os

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError

from .annotations import find_file, read_lines
from .base import ImageDataset
from .splits import Items, Lists


@DATASET_REGISTRY.register()
class SUN397(ImageDataset):
    """`SUN397/<letter>/<scene>[/<variant>]/`, the official lists beside it.

    The letter goes and the rest of the class is reversed: `/a/apartment_building/outdoor` becomes
    `outdoor apartment_building`.
    """

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    sizes = (397, 15880, 3970, 19850)

    def read_official(self) -> Lists:
        """Return partition 01; validation images are drawn from its training list."""
        classes = [line.lstrip("/") for line in self._lines("ClassName.txt")]
        labels = {scene: label for label, scene in enumerate(classes)}
        trainval = self._read("Training_01.txt", labels)
        return *self.split_trainval(trainval), self._read("Testing_01.txt", labels)

    def _read(self, name: str, labels: dict[str, int]) -> Items:
        """Read lines such as `/a/abbey/sun_aakbdcgfpksytcwj.jpg`."""
        items = []
        for line in self._lines(name):
            scene, _, _ = line.lstrip("/").rpartition("/")
            if scene not in labels:
                raise UserError(f"{name} in {self.dataset_dir}: '{line}' is of no listed class")
            items.append(
                Datum(
                    impath=os.path.join(self.image_dir, line.lstrip("/")),
                    label=labels[scene],
                    classname=" ".join(reversed(scene.split("/")[1:])),
                )
            )
        return items

    def _lines(self, name: str) -> list[str]:
        folders = ("", "Partitions", "SUN397")  # the archives put the lists in either
        return read_lines(find_file(self.dataset_dir, folders, name))

"""UCF101: actions, one frame from the middle of each video (Soomro et al., 2012)."""

import os
import re

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError

from .annotations import read_lines
from .base import ImageDataset
from .splits import Items, Lists


@DATASET_REGISTRY.register()
class UCF101(ImageDataset):
    """`UCF-101-midframes/<Apply_Eye_Makeup>/v_<…>.jpg`, the official lists of the videos.

    The class splits at capitals into words with underscores; file names are left as they are.
    """

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    template = "a photo of a person doing {}."
    other_templates = {"skipt": "a photo of a {}, a type of sport."}
    sizes = (101, 7639, 1898, 3783)

    def read_official(self) -> Lists:
        """Return list 01; validation images are drawn from its training list."""
        labels = {}
        for line in self._lines("classInd.txt"):
            number, _, action = line.partition(" ")
            if not number.isdecimal() or not action:
                raise UserError(
                    f"classInd.txt in {self.dataset_dir}: '{line}' is not 'number class'"
                )
            labels[action.strip()] = int(number) - 1
        trainval = self._read("trainlist01.txt", labels)
        return *self.split_trainval(trainval), self._read("testlist01.txt", labels)

    def _read(self, name: str, labels: dict[str, int]) -> Items:
        """Read lines such as `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`; test has no label."""
        items = []
        for line in self._lines(name):
            action, _, video = line.split(" ")[0].partition("/")
            if action not in labels:
                raise UserError(f"{name} in {self.dataset_dir}: '{line}' is of no listed class")
            classname = "_".join(re.findall("[A-Z][^A-Z]*", action))
            frame = video.replace(".avi", ".jpg")
            items.append(
                Datum(
                    impath=os.path.join(self.image_dir, classname, frame),
                    label=labels[action],
                    classname=classname,
                )
            )
        return items

    def _lines(self, name: str) -> list[str]:
        return read_lines(os.path.join(self.dataset_dir, "ucfTrainTestlist", name))

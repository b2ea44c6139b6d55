"""ImageNetV2, matched frequency: a new test set (Recht et al., ICML 2019)."""

import os

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError

from .base import Lists
from .files import image_files
from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """Folder k, from 0, holds the class in line k of `classnames.txt`."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    sizes = (1000, 0, 0, 10000)

    def read_official(self) -> Lists:
        items = []
        for label, (wordnet_id, classname) in enumerate(self.read_classnames().items()):
            folder = os.path.join(self.image_dir, str(label))
            if not os.path.isdir(folder):
                raise UserError(f"no folder {folder} for class '{classname}'; extract it again")
            items.extend(
                Datum(
                    impath=os.path.join(folder, name),
                    label=label,
                    classname=classname,
                    class_key=wordnet_id,
                )
                for name in image_files(folder)
            )
        return [], [], items

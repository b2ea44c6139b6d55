"""ImageNetV2, matched frequency: a new test set (Recht et al., ICML 2019)."""

import os
from itertools import islice

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError

from .imagenet import ImageNetVariant
from .splits import Lists, class_items


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """Folder k of 0…999 holds the class in line k of `classnames.txt`."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    sizes = (1000, 0, 0, 10000)

    def read_official(self) -> Lists:
        """Return test images alone. Raises UserError for a class without its folder."""
        items = []
        classes = islice(self.classnames_of_ids().items(), 1000)
        for label, (wordnet_id, classname) in enumerate(classes):
            folder = os.path.join(self.image_dir, str(label))
            if not os.path.isdir(folder):
                raise UserError(f"no folder {folder} for class '{classname}'; extract it again")
            items += class_items(folder, label, classname, wordnet_id)
        return [], [], items

"""Describable Textures (Cimpoi et al., CVPR 2014)."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import ImageDataset
from .splits import Lists


@DATASET_REGISTRY.register()
class DescribableTextures(ImageDataset):
    """`images/<class>/`; the field doesn't use the official lists in `labels/`."""

    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
    template = "a photo of a {}, a type of texture."
    # CLIP's own, and what TCP's context stands in.
    other_templates = {
        "skipt": "itap of a {}.",
        "zeroshot": "{} texture.",
        "tcp_context": "a photo of a {} texture.",
    }
    sizes = (47, 2820, 1128, 1692)

    def read_official(self) -> Lists:
        """Draw the split from the class folders."""
        return self.read_and_split_data(self.image_dir)

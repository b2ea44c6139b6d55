"""ImageNet-R: renditions, such as art and toys (Hendrycks et al., ICCV 2021)."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVariant):
    """`imagenet-r/<WordNet id>/`, 200 of the classes."""

    dataset_dir = "imagenet-rendition"
    other_templates = {"skipt": "a rendition of a {}."}
    image_dir = "imagenet-r"
    sizes = (200, 0, 0, 30000)

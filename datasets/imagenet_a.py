"""ImageNet-A: natural images that mislead classifiers (Hendrycks et al., CVPR 2021)."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    """`imagenet-a/<WordNet id>/`, 200 of the classes."""

    dataset_dir = "imagenet-adversarial"
    other_templates = {"skipt": "a bad photo of a {}."}
    image_dir = "imagenet-a"
    sizes = (200, 0, 0, 7500)

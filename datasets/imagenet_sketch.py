"""ImageNet-Sketch: drawings of the ImageNet classes (Wang et al., NeurIPS 2019)."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    """`images/<WordNet id>/`."""

    dataset_dir = "imagenet-sketch"
    other_templates = {"skipt": "a sketch of a {}."}
    image_dir = "images"
    sizes = (1000, 0, 0, 50889)

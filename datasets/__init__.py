"""Data sets. Every module in this folder is imported, so a reader registers by being here.

One that can't be imported, or wants a name that is taken, is left out and named in a line.
"""

import sys

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import import_folder

# The readers that come with this code: their names can't be taken by a file that is added.
READERS = (
    *("imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
    *("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft"),
    *("sun397", "dtd", "eurosat", "ucf101", "image_folder", "mini_world"),
)

import_folder(sys.modules[__name__], READERS, DATASET_REGISTRY)

"""What a data set is: lists of labeled image files."""

from .base_dataset import DatasetBase, Datum, number_of_base
from .build import DATASET_REGISTRY, build_dataset

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset", "number_of_base"]

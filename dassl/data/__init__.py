"""From a data set's lists to batches of views."""

from .data_manager import DataManager, build_data_loader, check_images
from .wrapper import DatasetWrapper

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader", "check_images"]

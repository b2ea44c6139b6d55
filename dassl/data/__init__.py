"""From a data set's lists to batches of views."""

from dassl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "data_manager": ["DataManager", "build_data_loader", "check_images"],
        "wrapper": ["DatasetWrapper"],
    },
)

"""What makes two configs those of the same run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# What may differ between machines, or sittings, without changing a number.
MACHINE_KEYS = (
    "OUTPUT_DIR",
    "RESUME",
    "INPUT.ON_DECODE_ERROR",
    "OVERWRITE",
    "TEST.COMPUTE_CMAT",
    "TEST.PER_CLASS_RESULT",
    "TEST.SAVE_PREDICTIONS",
    "TRAIN.CHECKPOINT_FREQ",
    "USE_CUDA",
    "VERBOSE",
    "DATASET.ROOT",
    "DATASET.CONFIG",  # what it chose says all
    "INPUT.ON_DECODE_ERROR",  # what was skipped stands in the result
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.DECODED_GB",
    "DATALOADER.FEATURE_CACHE",
    "DATALOADER.FEATURE_CACHE_GB",
    "TRAIN.CUDA_GRAPH",
    "TRAIN.PRINT_FREQ",
    "TRAIN.TRACKERS",
)


def config_values(
    node: Mapping[str, Any], leave_out: Collection[str] = MACHINE_KEYS, prefix: str = ""
) -> dict[str, Any]:
    """Return the config as {dotted key: value}, without some keys: by default the machine's."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            values |= config_values(value, leave_out, f"{name}.")
        elif name not in leave_out:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values

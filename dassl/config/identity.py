"""A run's identity: what its numbers depend on, and nothing else.

    settings   the config it reads: the shared sections and the nodes its trainer declares, without
               the machine's keys, and without those that name files whose content counts
    data       a digest of the classes, the template, and of labels and image contents of each list
    files      SHA-256 of the files that settings name: the backbone, MODEL.INIT_WEIGHTS
    model      SHA-256 of the checkpoint that an evaluation tests

It stands in result.json and in every checkpoint and resume file. Two are compared part by part; a
key that only one of them has, such as a newer version's, counts at its default.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.utils.contents import content_digest

from .defaults import full_defaults
from .node import CfgNode

# What may differ between machines, or sittings, without changing a number.
MACHINE_KEYS = (
    "OUTPUT_DIR",
    "RESUME",
    "OVERWRITE",
    "TEST.COMPUTE_CMAT",
    "TEST.PER_CLASS_RESULT",
    "TEST.SAVE_PREDICTIONS",
    "TRAIN.CHECKPOINT_FREQ",
    "USE_CUDA",
    "VERBOSE",
    "DATASET.ROOT",
    "DATASET.CONFIG",  # what it chose says all
    "DATASET.LABEL",
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


Identity = dict[str, Any]

_DATA = {
    "classes": "other classes",
    "template": "another template",
    "train_x": "other training images or labels",
    "train_u": "other unlabeled images",
    "val": "other validation images or labels",
    "test": "other test images or labels",
}

OTHER_MODEL = "another model to test"


def settings_of(
    cfg: CfgNode, nodes: Sequence[str] | None, by_content: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the settings a run reads as {dotted key: value}.

    Args:
        cfg: the resolved config.
        nodes: those below TRAINER that its trainer reads. None if it doesn't say: then all of
            which something is not at its default, or has none.
        by_content: keys that name files whose content counts instead.
    """
    values = _plain(cfg)
    if nodes is None:
        defaults = default_settings()
        # A key without a default is one that other code added in its own way.
        changed = [
            key for key, value in values.items() if key not in defaults or value != defaults[key]
        ]
        nodes = [key.split(".")[1] for key in changed if key.startswith("TRAINER.")]
    kept = {"NAME", *nodes}
    return {
        key: value
        for key, value in values.items()
        if key not in by_content and (not key.startswith("TRAINER.") or key.split(".")[1] in kept)
    }


def default_settings() -> dict[str, Any]:
    """Return every key of this version with its default, methods' too."""
    return _plain(full_defaults())


def _plain(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(config_values(cfg)))


def data_of(
    dataset: Any, template: str, lists: Sequence[str], cache: Path | None = None
) -> dict[str, str]:
    """Return what a run's numbers depend on in its data, by part.

    Args:
        dataset: with classnames, class_keys and the `lists`.
        template: of the prompts.
        lists: those that the run uses, of train_x, train_u, val and test.
        cache: where digests of images are kept by their names, sizes and times.
    """
    classes = list(zip(dataset.class_keys, dataset.classnames, strict=True))
    parts = {"classes": _digest(classes), "template": template}
    for name in lists:
        items = getattr(dataset, name) or []
        images = content_digest([item.impath for item in items], cache)
        parts[name] = _digest([[item.label for item in items], images])
    return parts


def lists_of(cfg: CfgNode, trains: bool) -> list[str]:
    """Return which lists of the data set a run's numbers depend on."""
    lists = ["train_x", "train_u"] if trains else []
    if trains and cfg.TEST.FINAL_MODEL == "best_val":
        lists.append("val")
    if cfg.TEST.SPLIT not in lists and not (trains and cfg.TEST.NO_TEST):
        lists.append(cfg.TEST.SPLIT)
    return lists


def cache_folder(cfg: CfgNode) -> Path | None:
    """Return DATALOADER.FEATURE_CACHE, below the data sets' root unless absolute; None for none."""
    folder = cfg.DATALOADER.FEATURE_CACHE
    if not folder:
        return None
    root = cfg.DATASET.ROOT
    root = root if os.path.isdir(root) else os.path.dirname(root)  # a table, for some data sets
    return Path(root, folder)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def is_identity(value: Any) -> bool:
    """Whether a record's entry is an identity; records of before have none."""
    return isinstance(value, dict) and all(
        isinstance(value.get(part), dict) for part in ("settings", "data", "files")
    )


def differences(old: Identity, new: Identity) -> list[str]:
    """Return how two identities differ, a phrase each: "OPTIM.LR 0.1 -> 0.2", "other classes"."""
    found = []
    alike = old["settings"].keys() == new["settings"].keys()
    defaults = {} if alike else default_settings()  # which takes its time
    for key in {**old["settings"], **new["settings"]}:
        a, b = (one["settings"].get(key, defaults.get(key)) for one in (old, new))
        if a != b:
            found.append(f"{key} {a} -> {b}")
    found += data_differences(old, new)
    for name in {**old["files"], **new["files"]}:
        if old["files"].get(name) != new["files"].get(name):
            found.append(f"another file for {name}")
    if old.get("model") != new.get("model"):
        found.append(OTHER_MODEL)
    return found


def data_differences(
    old: Identity, new: Identity, parts: Iterable[str] = tuple(_DATA)
) -> list[str]:
    """Return how two identities differ in these parts of their data, a phrase each."""
    found = []
    for part in parts:
        a, b = old["data"].get(part), new["data"].get(part)
        if a != b:
            plain = part == "template" and a and b
            found.append(f"template {a!r} -> {b!r}" if plain else _DATA[part])
    return found


def told(found: Sequence[str], most: int = 3) -> str:
    """Return some differences as one phrase."""
    more = f"; {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + more

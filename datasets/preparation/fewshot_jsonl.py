"""Few-shot samples as a line of JSON for each image: `shot_16-seed_1_train.jsonl`, `…_val.jsonl`.

The form of "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages" (CVPR 2025,
arXiv 2503.11609), whose authors share theirs: _impath, _label, _domain, _classname. Labels
count all classes, paths are relative to the folder of all data sets.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum
from dassl.utils import atomic_write, check_kind, read_json_lines
from datasets.annotations import Row


def file_of(folder: Path, shots: int, seed: int, part: str) -> Path:
    """Return the file of a sample's part, "train" or "val"."""
    return folder / f"shot_{shots}-seed_{seed}_{part}.jsonl"


def read_part(path: Path) -> list[Row]:
    """Return (path, label, class name) of each image, paths as they are there.

    Raises UserError, naming file and line, if it is anything else.
    """
    return [
        _row(record, f"{path}, line {number}")
        for number, record in enumerate(read_json_lines(path), start=1)
    ]


def _row(record: dict[str, Any], where: str) -> Row:
    label = record.get("_label")
    return (
        check_kind(record.get("_impath"), str, f"{where}: its '_impath'"),
        check_kind(label, int, f"{where}: its '_label'"),
        check_kind(record.get("_classname"), str, f"{where}: its '_classname'"),
    )


def write_part(path: Path, items: list[Datum], root: str) -> None:
    """Write images, whole or not at all, with paths relative to `root`."""
    with atomic_write(path) as file:
        for item in items:
            record = {
                "_impath": Path(os.path.relpath(item.impath, root)).as_posix(),
                "_label": item.label,
                "_domain": item.domain,
                "_classname": item.classname,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

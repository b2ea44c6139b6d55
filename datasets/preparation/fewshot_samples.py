"""Few-shot samples in other forms than ours, to and from it: pickles, and lines of JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dassl.utils import UserError
from datasets.annotations import Row
from datasets.base import ImageDataset
from datasets.preparation import fewshot_jsonl, fewshot_pickle

# The files of a sample: the pickle, or the training part's lines.
_FILE = re.compile(r"shot_(\d+)-seed_(\d+)(\.pkl|_train\.jsonl)")
PARTS = fewshot_pickle.PARTS


def convert(reader: type[ImageDataset], root: str) -> list[Path]:
    """Write every `split_fewshot/shot_*-seed_*.pkl` or `…_train.jsonl` as our JSON beside it.

    The images are looked up in the current split by the ends of their paths, so it doesn't matter
    where the original code had them. Returns the JSON files. Raises UserError if a sample isn't
    one of the current split, is there in both forms, or there is none.
    """
    data = reader.open(root)
    train, val, _ = data.load_lists()
    folder = Path(data.dataset_dir) / "split_fewshot"
    written: list[Path] = []
    for path in sorted([*folder.glob("*.pkl"), *folder.glob("*_train.jsonl")]):
        match = _FILE.fullmatch(path.name)
        if not match:
            raise UserError(f"{path}: expected shot_<number>-seed_<number>{path.suffix}")
        shots, seed = map(int, match.groups()[:2])
        target = data.fewshot_path(shots, seed)
        if Path(target) in written:
            raise UserError(f"{path}: that sample is there as a pickle, too; move one away")
        pools = {"train": (train, shots), "val": (val, min(shots, 4))}
        lists = {}
        for part, (pool, number) in pools.items():
            source, found = _rows(path, shots, seed, part)
            rows = data.rows(pool)
            try:
                lists[part] = data.match_rows(_relative(found, rows), pool, number)
            except ValueError as error:
                raise UserError(f"{source}, '{part}': {error}") from None
        data.write_sample(lists["train"], lists["val"], target)
        written.append(Path(target))
    if not written:
        raise UserError(
            f"no shot_<number>-seed_<number>.pkl and no shot_<number>-seed_<number>_train.jsonl in "
            f"{folder}"
        )
    return written


def _rows(path: Path, shots: int, seed: int, part: str) -> tuple[Path, list[Row]]:
    """Return the file of a sample's part, and what it lists; nothing where there is no val."""
    if path.suffix == ".pkl":
        return path, fewshot_pickle.read_sample(path).get(part, [])
    source = fewshot_jsonl.file_of(path.parent, shots, seed, part)
    return source, fewshot_jsonl.read_part(source) if source.is_file() else []


def export(
    reader: type[ImageDataset], root: str, shots: Sequence[int], seeds: Sequence[int]
) -> list[Path]:
    """Write samples as lines of JSON into `split_fewshot`; return the files.

    A sample that isn't kept there is drawn. Raises UserError as the reader does.
    """
    data = reader.open(root)
    train, val, _ = data.load_lists()
    folder = Path(data.dataset_dir) / "split_fewshot"
    folder.mkdir(exist_ok=True)
    written = []
    for number in shots:
        for seed in seeds:
            for part, items in zip(PARTS, data.sample(train, val, number, seed), strict=True):
                if items:
                    path = fewshot_jsonl.file_of(folder, number, seed, part)
                    fewshot_jsonl.write_part(path, items, root)
                    written.append(path)
    return written


def _relative(rows: list[Row], known: list[Row]) -> list[Row]:
    """Shorten each path to the longest end of it that is a path of the split."""
    paths = {row[0] for row in known}
    shortened = []
    for path, label, classname in rows:
        words = path.replace("\\", "/").split("/")
        ends = ("/".join(words[i:]) for i in range(len(words)))
        shortened.append((next((end for end in ends if end in paths), path), label, classname))
    return shortened

"""The reader that every data set of images is one of: split, few-shot sample, base and new classes.

A reader is a short subclass: where its files lie, its hand-written prompt template, and how its
official lists are read when there is no split file. What is drawn, and in which order, is what the
Dassl-based readers of the CoOp family draw, so that samples of equal seeds are the same images.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import UserError, missing_files, read_json, suggest

from . import splits
from .annotations import Row, rows_hash, seeded
from .splits import PARTS, SPLIT_SEED, Items, Lists, rows_of, write_compact


class ImageDataset(DatasetBase):
    """A data set below `cfg.DATASET.ROOT`; the config says shots, seed and classes.

    Afterwards `dataset_dir` and `image_dir` are absolute, `split_hash` names the whole split and
    `fewshot_hash` the sample drawn from it ("" where nothing was drawn), both over all classes.
    Raises UserError if a folder, a list or a listed image is missing or says two things at once.
    """

    dataset_dir = ""  # below the root
    image_dir = ""  # below dataset_dir; the paths in split files are relative to it
    split_file = ""  # in dataset_dir; "" where the official lists are the split
    sizes: tuple[int, int, int, int] | None = None  # published: classes, train, val, test
    listed_from_disk = False  # its lists come from listing folders: no image can be missing
    how_to_get = "get it with: python scripts/prepare_data.py {name} --root {root}"

    # Readers of the CoOp family call these on one another.
    read_split = staticmethod(splits.read_split)
    save_split = staticmethod(splits.save_split)
    split_trainval = staticmethod(splits.split_trainval)
    read_and_split_data = staticmethod(splits.read_and_split_data)
    subsample_classes = staticmethod(splits.subsample_classes)

    def __init__(self, cfg: Any) -> None:
        self.locate(cfg.DATASET.ROOT)
        train, val, test = self.load_lists()
        self.label_space = self.all_classes(train or test)
        train, val = self.sample(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        train, val, test = self.subsample_classes(
            *self.roles(train, val, test), subsample=cfg.DATASET.SUBSAMPLE_CLASSES
        )
        if not self.listed_from_disk and cfg.INPUT.ON_DECODE_ERROR == "fail":
            self.require_images([*train, *val, *test])
        super().__init__(train_x=train or None, val=val or None, test=test)

    # ------------------------------------------------------------ what a subclass may override

    def read_official(self) -> Lists:
        """Return train, val and test as the official annotations give them.

        Called with `random` seeded by `SPLIT_SEED`, for the parts that have to be drawn.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither a split file nor lists")

    def roles(self, train: Items, val: Items, test: Items) -> Lists:
        """Return the lists in the roles they are used in (ImageNet validates on its test list)."""
        return train, val, test

    def remarks(self, lists: Lists, read: bool = False) -> list[str]:
        """Return what to tell of the lists once they are read, a line each.

        read: whether images may be read to find out.
        """
        return []

    def all_classes(self, items: Items) -> dict[str, str]:
        """Return names by class key, in label order, of all classes; `items` holds those read."""
        return {item.class_key: item.classname for item in sorted(items, key=lambda i: i.label)}

    # ------------------------------------------------------------ folders

    @classmethod
    def open(cls, root: str) -> ImageDataset:
        """Return the reader of the data set below `root` with its lists not yet read."""
        reader = cls.__new__(cls)
        reader.locate(root)
        return reader

    def locate(self, root: str) -> None:
        """Set `dataset_dir` and `image_dir`. Raises UserError saying what is missing where."""
        if not root:
            raise UserError("no data folder given: say --root DIR (DATASET.ROOT)")
        root = os.path.abspath(os.path.expanduser(root))
        if not os.path.isdir(root):
            raise UserError(f"no such data folder: {root} (--root)")
        help_ = self.how_to_get.format(name=type(self).__name__, root=root)
        self.dataset_dir = os.path.normpath(os.path.join(root, type(self).dataset_dir))
        if not os.path.isdir(self.dataset_dir):
            near = suggest(os.path.basename(self.dataset_dir), os.listdir(root))
            raise UserError(f"no folder {self.dataset_dir}{near}; {help_}")
        self.image_dir = os.path.normpath(os.path.join(self.dataset_dir, self.find_image_dir()))
        if not os.path.isdir(self.image_dir):
            misplaced = self._find_misplaced(os.path.basename(self.image_dir))
            raise UserError(f"no folder {self.image_dir}{misplaced}; {help_}")

    def find_image_dir(self) -> str:
        """Return the image folder relative to `dataset_dir`."""
        return type(self).image_dir

    def _find_misplaced(self, name: str) -> str:
        for folder, inside, _ in os.walk(self.dataset_dir):
            if name in inside:
                return f" (there is {os.path.join(folder, name)}: move it)"
            if os.path.relpath(folder, self.dataset_dir).count(os.sep) >= 2:
                inside.clear()
        return ""

    # ------------------------------------------------------------ the split

    @property
    def split_path(self) -> str:
        """Where the split file is, or would be."""
        return os.path.join(self.dataset_dir, self.split_file)

    def has_split_file(self) -> bool:
        """Return whether the split is to be read from the split file."""
        return bool(self.split_file) and os.path.isfile(self.split_path)

    def load_lists(self) -> Lists:
        """Return the whole split, all classes; one that had to be drawn is saved.

        Sets `split_hash`.
        """
        given = self.has_split_file()
        lists = self.read_lists()
        if self.split_file and not given:
            path = self.split_path
            unlike = ", not the published one" if self.sizes else ""
            print(f"No {path}: drew a split with seed {SPLIT_SEED}{unlike}")
            self._save(lambda: self.save_split(*lists, path, self.image_dir), path)
        self.require_clear_classes(*lists)
        for remark in self.remarks(lists):
            print(f"{self.dataset_dir}: {remark}")
        self.split_hash = rows_hash(dict(zip(PARTS, map(self.rows, lists), strict=True)))
        return lists

    def read_lists(self) -> Lists:
        """Return train, val and test from the split file or else the official lists."""
        if self.has_split_file():
            return self.read_split(self.split_path, self.image_dir)
        with seeded(SPLIT_SEED):
            return self.read_official()

    def require_clear_classes(self, train: Items, val: Items, test: Items) -> None:
        """Raise UserError if a label has two names, or is evaluated and not trained."""
        lists = self.split_path
        names: dict[int, str] = {}
        for items in (train or test, val, test):
            known = frozenset(names)
            for item in items:
                name = names.setdefault(item.label, item.classname)
                if name != item.classname:
                    raise UserError(
                        f"label {item.label} is called '{name}' and '{item.classname}' "
                        f"({item.impath}) in {lists}; give each label one name"
                    )
                if known and item.label not in known:
                    raise UserError(
                        f"class '{name}' has images to evaluate ({item.impath}) but none to train "
                        f"on in {lists}; add some or take the class out"
                    )
        if not test:
            raise UserError(f"no test images are listed in {lists}")

    def rows(self, items: Iterable[Datum]) -> list[Row]:
        """Return `items` as a split file has them, paths relative to the image folder."""
        return rows_of(items, self.image_dir)

    def require_images(self, items: Sequence[Datum]) -> None:
        """Raise UserError naming the first listed image that isn't there, and how many aren't."""
        missing = missing_files(item.impath for item in items)
        if missing:
            help_ = f"check with: python scripts/prepare_data.py --check {type(self).__name__}"
            raise UserError(
                f"{type(self).__name__}: {len(missing)} of {len(items)} listed images are missing, "
                f"first {missing[0]}; {help_}"
            )

    # ------------------------------------------------------------ few shots

    def sample(self, train: Items, val: Items, shots: int, seed: int) -> tuple[Items, Items]:
        """Return `shots` training and `min(shots, 4)` validation images per class.

        Everything if `shots` < 1. The sample is a function of split, shots and seed, and is kept
        in `split_fewshot/shot_<shots>-seed_<seed>.json`; a negative seed draws anew each time.
        Sets `fewshot_hash`.
        """
        self.fewshot_hash = ""
        if shots < 1 or not train:
            return train, val
        cache = self.fewshot_path(shots, seed)
        sample = self._read_sample(cache, train, val, shots) if seed >= 0 else None
        if sample is None:
            with seeded(seed):
                sample = (
                    self.generate_fewshot_dataset(train, num_shots=shots),
                    self.generate_fewshot_dataset(val, num_shots=min(shots, 4)),
                )
            if seed >= 0:
                self._save(lambda: self.write_sample(*sample, cache), cache)
        self._say_fewer(train, shots)
        self.fewshot_hash = rows_hash({"train": self.rows(sample[0]), "val": self.rows(sample[1])})
        return sample

    def _say_fewer(self, train: Items, shots: int) -> None:
        """Print how many classes are taken whole, as they have fewer images than was asked for."""
        counts = Counter(item.class_key for item in train)
        fewer = {key: n for key, n in counts.items() if n < shots}
        if fewer:
            key, least = min(fewer.items(), key=lambda entry: entry[1])
            print(
                f"{len(fewer)} of {len(counts)} classes have fewer than {shots} training images "
                f"and are taken whole, '{key}' with {least}"
            )

    def fewshot_path(self, shots: int, seed: int) -> str:
        """Return where the sample of `shots` and `seed` is kept."""
        return os.path.join(self.dataset_dir, "split_fewshot", f"shot_{shots}-seed_{seed}.json")

    def write_sample(self, train: Items, val: Items, path: str) -> None:
        """Write a sample; whole or not at all, so two runs may write the same one at once."""
        rows = {"train": self.rows(train), "val": self.rows(val)}
        write_compact({**rows, "split": self.split_hash, "hash": rows_hash(rows)}, path)

    def _read_sample(
        self, path: str, train: Items, val: Items, shots: int
    ) -> tuple[Items, Items] | None:
        """Return the kept sample, or None if there is none or it isn't one of this split."""
        if not os.path.isfile(path):
            return None
        try:
            kept = read_json(path)
            if kept.get("split", self.split_hash) == self.split_hash:
                return (
                    self.match_rows(kept["train"], train, shots),
                    self.match_rows(kept["val"], val, min(shots, 4)),
                )
            reason = "it was drawn from another split"
        except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
            reason = str(error) or type(error).__name__
        print(f"Drawing the few-shot sample anew: {path} does not fit ({reason})")
        return None

    def match_rows(self, rows: Iterable[Row], pool: Items, shots: int) -> Items:
        """Return the items of `pool` that `rows` name, in the order of `rows`.

        Raises ValueError unless they are `shots` of each class (all of a smaller class).
        """
        known = dict(zip(self.rows(pool), pool, strict=True))
        try:
            items = [known[tuple(row)] for row in rows]
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is not in the split") from None
        if len(set(map(id, items))) < len(items):
            raise ValueError("an image comes twice")
        per_class = Counter(item.label for item in pool)
        expected = {label: min(n, shots) for label, n in per_class.items()}
        if Counter(item.label for item in items) != expected:
            raise ValueError(f"it is not {shots} of each class")
        return items

    @staticmethod
    def _save(write: Callable[[], None], path: str) -> None:
        try:
            write()
        except OSError as error:
            print(f"Cannot save {path} ({error.strerror}); it is drawn again, the same, each time")

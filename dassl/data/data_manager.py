"""A data set's lists as data loaders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dassl.config import CfgNode
from dassl.utils import UserError, check_choice, missing_files, undecodable, worker_init_fn
from dassl.utils.images import odd_lines

from .datasets import DatasetBase, Datum, build_dataset
from .samplers import build_sampler
from .transforms import build_transform, corruption_of
from .wrapper import BadImage, DatasetWrapper, Transform


class ImageLoader(DataLoader):
    """A data loader that fails, or goes on, at an image that cannot be read.

    Args:
        on_decode_error: "fail" raises UserError naming the file; "skip" leaves the image out of
            its batch, and a batch of such images out of the pass, and remembers them in `skipped`.
    """

    def __init__(self, dataset: Dataset, on_decode_error: str = "fail", **kwargs: Any) -> None:
        check_choice("INPUT.ON_DECODE_ERROR", on_decode_error, ("fail", "skip"))
        super().__init__(dataset, collate_fn=_collate, **kwargs)
        self._fail = on_decode_error == "fail"
        self.skipped: set[str] = set()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch, bad in super().__iter__():
            for impath, reason in bad:
                if self._fail:
                    raise UserError(f"{reason} (INPUT.ON_DECODE_ERROR skip leaves such images out)")
                if impath not in self.skipped:
                    print(f"Skipped: {reason}")
                    self.skipped.add(impath)
            if batch is not None:
                yield batch

    def close(self) -> None:
        """End its workers, which are kept for the next pass.

        Left to the garbage collector each would take ten seconds to end: that closes the queues
        first by which they are told.
        """
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()

    @property
    def has_started(self) -> bool:
        """Whether its workers are at hand for the next pass."""
        return self._iterator is not None

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch (from 0) the next pass belongs to."""
        for part in (self.dataset, self.sampler):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)


def _collate(items: list) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    good = [item for item in items if not isinstance(item, BadImage)]
    bad = [(item.impath, item.reason) for item in items if isinstance(item, BadImage)]
    return default_collate(good) if good else None, bad


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform | Sequence[Transform] | None = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset] | None = None,
) -> ImageLoader:
    """Return a loader over `data_source`.

    A training loader drops an incomplete last batch unless it is the only one.
    """
    if not data_source:
        raise UserError(f"{cfg.DATASET.NAME}: no images to load")
    workers = _workers(cfg.DATALOADER.NUM_WORKERS)
    if batch_size < 1 or workers < 0:
        raise UserError(
            f"DATALOADER: batches of {batch_size} images by {workers} workers make no sense"
        )
    return ImageLoader(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        on_decode_error=cfg.INPUT.ON_DECODE_ERROR,
        batch_size=batch_size,
        sampler=build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins),
        num_workers=workers,
        worker_init_fn=worker_init_fn() if workers else None,
        # A pass over the test images is rare, and its workers' memory better given back.
        persistent_workers=is_train and workers > 0,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        # Its own generator: a pass leaves the global one as it was, whatever the workers.
        generator=torch.Generator(),
    )


def check_images(cfgs: Sequence[CfgNode]) -> None:
    """Decode every image of the data sets of these configs once, and name those that can't be.

    Raises UserError if there are such and a config is not to leave them out.
    """
    paths: dict[str, None] = {}  # a set that keeps its order
    for cfg in cfgs:
        data = build_dataset(cfg)
        for part in (data.train_x, data.train_u, data.val, data.test):
            paths |= dict.fromkeys(item.impath for item in part or ())
    odd: dict[str, list[str]] = {}
    bad = undecodable(paths, odd)
    for line in (*bad, *odd_lines(odd)):
        print(line)
    if bad and any(cfg.INPUT.ON_DECODE_ERROR == "fail" for cfg in cfgs):
        raise UserError(
            f"{len(bad):,} of {len(paths):,} images can't be decoded, the first: {bad[0]} "
            "(INPUT.ON_DECODE_ERROR skip leaves such images out)"
        )
    print(f"Decoded {len(paths):,} images, {len(bad):,} of them can't be read")


class DataManager:
    """The data set of a run and its loaders.

    Args:
        cfg: the config.
        custom_tfm_train: instead of the training transform from the config.
        custom_tfm_test: instead of the test transform from the config.
        dataset_wrapper: instead of `DatasetWrapper`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transform | Sequence[Transform] | None = None,
        custom_tfm_test: Transform | Sequence[Transform] | None = None,
        dataset_wrapper: Callable[..., Dataset] | None = None,
    ) -> None:
        self.cfg = cfg
        self.dataset = build_dataset(cfg)
        self.template = template_of(cfg, self.dataset)
        if cfg.INPUT.ON_DECODE_ERROR == "fail":
            for name in ("train_x", "train_u", "val", "test"):
                _check_files(getattr(self.dataset, name) or [], name)

        train = custom_tfm_train or build_transform(cfg, is_train=True)
        test = custom_tfm_test or build_transform(cfg, is_train=False)
        # Only what the final evaluation runs on: not the images that may choose an epoch.
        transforms = {"val": test, "test": test}
        if (corrupt := corruption_of(cfg)) is not None:
            if custom_tfm_test is not None:
                raise UserError(
                    f"TEST.CORRUPTION {corrupt.name}: this trainer has a test transform of its own"
                )
            transforms[cfg.TEST.SPLIT] = build_transform(cfg, is_train=False, corrupt=corrupt)
        node = cfg.DATALOADER
        unlabeled = node.TRAIN_X if node.TRAIN_U.SAME_AS_X else node.TRAIN_U

        def loader(
            items: list[Datum] | None, node: CfgNode, tfm: Any, is_train: bool = False
        ) -> ImageLoader | None:
            if not items:
                return None
            return build_data_loader(
                cfg,
                sampler_type=node.SAMPLER,
                data_source=items,
                batch_size=node.BATCH_SIZE,
                n_domain=node.get("N_DOMAIN", 0),
                n_ins=node.get("N_INS", 1),
                tfm=tfm,
                is_train=is_train,
                dataset_wrapper=dataset_wrapper,
            )

        self.train_loader_x = loader(self.dataset.train_x, node.TRAIN_X, train, is_train=True)
        self.train_loader_u = loader(self.dataset.train_u, unlabeled, train, is_train=True)
        self.val_loader = loader(self.dataset.val, node.TEST, transforms["val"])
        self.test_loader = loader(self.dataset.test, node.TEST, transforms["test"])
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return self.dataset.num_classes

    @property
    def num_source_domains(self) -> int:
        """The number of DATASET.SOURCE_DOMAINS."""
        return len(self.cfg.DATASET.SOURCE_DOMAINS)

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name by label."""
        return self.dataset.lab2cname

    @property
    def classnames(self) -> list[str]:
        """The C class names in the order of their labels."""
        return self.dataset.classnames

    @property
    def class_keys(self) -> list[str]:
        """The C stable class identities in the order of their labels."""
        return self.dataset.class_keys

    @property
    def label_space(self) -> Mapping[str, str]:
        """Names by class key of all the data set's classes, this run's or not, in label order."""
        return self.dataset.label_space

    @property
    def skipped_images(self) -> int:
        """The number of images that could not be read so far and were left out."""
        loaders = (self.train_loader_x, self.train_loader_u, self.val_loader, self.test_loader)
        return len(set().union(*(loader.skipped for loader in loaders if loader)))

    def close(self) -> None:
        """End the loaders' workers; they start again with the next pass."""
        for loader in (self.train_loader_x, self.train_loader_u):
            if isinstance(loader, ImageLoader):
                loader.close()

    @property
    def decoding(self) -> dict[str, Any] | None:
        """How often labeled training images were decoded, and what is kept; None where unknown."""
        views = getattr(self.train_loader_x, "dataset", None)
        return views.decoded.record() if isinstance(views, DatasetWrapper) else None

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch (from 0) the next pass over the training images belongs to."""
        for loader in (self.train_loader_x, self.train_loader_u):
            if loader is not None:
                loader.set_epoch(epoch)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print the numbers of classes and images."""
        lines = {"Dataset": cfg.DATASET.NAME}
        if cfg.DATASET.SOURCE_DOMAINS:
            lines["Source"] = ", ".join(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.DATASET.TARGET_DOMAINS:
            lines["Target"] = ", ".join(cfg.DATASET.TARGET_DOMAINS)
        lines["# classes"] = f"{self.num_classes:,}"
        for name in ("train_x", "train_u", "val", "test"):
            if items := getattr(self.dataset, name):
                lines[f"# {name}"] = f"{len(items):,}"
        print("\n".join(f"{name:<10} {value}" for name, value in lines.items()))


@cache
def _workers(wanted: int) -> int:
    """As many of the wanted processes as there are cores for them; says so, once, if fewer."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on every system
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    if wanted > cores:
        print(f"DATALOADER.NUM_WORKERS is {wanted}, but there are {cores} cores: {cores} workers")
    return min(wanted, cores)


def template_of(cfg: CfgNode, dataset: DatasetBase | type[DatasetBase], name: str = "") -> str:
    """Return the prompt template of a run: DATASET.TEMPLATE, or else the data set's.

    Where the data set has one called `name`, that one; else its usual one. Raises UserError for
    one that doesn't hold {} once.
    """
    template = cfg.DATASET.TEMPLATE or dataset.other_templates.get(name, dataset.template)
    if template.count("{}") != 1:
        raise UserError(f"the prompt template {template!r} must hold {{}} once, for the class name")
    return template


def _check_files(items: Iterable[Datum], which: str) -> None:
    """Raise UserError if image files are missing: now, not after an hour of training."""
    missing = missing_files(item.impath for item in items)
    if missing:
        others = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        verb = "are" if others else "is"
        raise UserError(f"{missing[0]}{others} of the {which} images {verb} missing")

"""What scripts/prepare_data.py does (its options: experiments/preparation_command.py)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets  # noqa: F401 - registers the readers
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, lock_folder, suggest, unlock_folder
from datasets.base import ImageDataset
from datasets.image_folder import ImageFolder
from datasets.preparation.check import check, table
from datasets.preparation.fetch import Options
from datasets.preparation.fewshot_samples import convert, export
from datasets.preparation.prepare import Preparation
from datasets.preparation.sources import SOURCES

__all__ = ["SOURCES", "convert", "export", "prepare", "report", "targets_of"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "datasets"


@dataclass(frozen=True)
class Target:
    """A data set on disk. name: in tables; root: the folder that holds its folder."""

    name: str
    reader: type[ImageDataset]
    root: str


def targets_of(names: list[str], root: str) -> list[Target]:
    """Return what the names mean: readers', config files', or NAME=FOLDER for one's own images.

    A config file with a DATASET.ROOT of its own lies there, unless `root` says otherwise.

    Raises:
        UserError: there is none of that name, or nothing says where it lies.
    """
    known: dict[str, Target] = {}
    for name in DATASET_REGISTRY.registered_names():
        reader = DATASET_REGISTRY.get(name)
        if issubclass(reader, ImageDataset):
            known[name.lower()] = Target(name, reader, root)
    for path in CONFIGS.glob("*.yaml"):
        cfg = get_cfg_default()
        cfg.merge_from_file(str(path))
        if (of := known.get(cfg.DATASET.NAME.lower())) is not None:
            own = cfg.DATASET.ROOT
            known[path.stem] = Target(path.stem, of.reader, root or own) if own else of
    found = []
    for name in names:
        label, own, folder = name.partition("=")
        if own:
            found.append(Target(label, ImageFolder, folder))
        elif name == "all":
            found += [known[source.lower()] for source in SOURCES]
        elif name.lower() in known:
            found.append(known[name.lower()])
        else:
            names = ", ".join(sorted({target.name for target in known.values()}))
            raise UserError(f"unknown data set '{name}'{suggest(name, known)}; there are {names}")
    for target in found:
        if not (target.name and target.root):
            own = "NAME=FOLDER for images of your own"
            raise UserError(f"say where {target.name or target.root} lies: --root DIR, or {own}")
    return found


def prepare(readers: list[type[ImageDataset]], args: argparse.Namespace) -> list[str]:
    """Get what is missing; return what could not be had."""
    own = [reader.__name__ for reader in readers if reader.__name__ not in SOURCES]
    if own:
        raise UserError(f"{own[0]} is not to be downloaded; see docs/datasets.md")
    root = Path(args.root).expanduser().resolve()
    root.mkdir(parents=True, exist_ok=True)
    downloads = Path(args.downloads).expanduser() if args.downloads else root / "downloads"
    options = Options(timeout=args.timeout, retries=args.retries)
    preparation = Preparation(root, downloads, options, args.keep)
    failures = []
    lock_folder(root)
    try:
        for reader in readers:
            if not check(reader, str(root)).complete:
                name = reader.__name__
                failures += preparation.prepare(name, SOURCES[name])
    finally:
        unlock_folder(root)
    return failures


def report(
    targets: list[Target],
    args: argparse.Namespace,
    of_names: Callable[[Mapping[str, str], str], list[str]],
) -> bool:
    """Print the table; return whether all is complete.

    of_names: what to say of a data set's names by key, with its template.
    """
    findings = []
    for target in targets:
        finding = check(target.reader, target.root, args.decode)
        finding.name = target.name
        if target.reader.sizes is None:  # those that were published are as they are
            finding.remarks += of_names(finding.names, finding.template)
        findings.append(finding)
    print(table(findings))
    absent = [finding.name for finding in findings if not finding.found and finding.name in SOURCES]
    if absent and args.check:
        command = f"python scripts/prepare_data.py {' '.join(absent)} --root {args.root}"
        print(f"To get what is not there: {command}")
    return all(finding.complete for finding in findings)

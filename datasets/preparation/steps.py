"""What scripts/prepare_data.py does (its options: experiments/preparation_command.py)."""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets  # noqa: F401 - registers the readers
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, lock_folder, suggest, unlock_folder
from datasets.base import ImageDataset
from datasets.preparation.check import check, table
from datasets.preparation.fetch import Options
from datasets.preparation.fewshot_samples import convert, export
from datasets.preparation.prepare import Preparation
from datasets.preparation.sources import SOURCES

__all__ = ["SOURCES", "convert", "export", "prepare", "readers_of", "report"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "datasets"


def readers_of(names: list[str]) -> list[type[ImageDataset]]:
    """Return the readers of the names, which may be readers' or config files'."""
    known = {}
    for name in DATASET_REGISTRY.registered_names():
        reader = DATASET_REGISTRY.get(name)
        if issubclass(reader, ImageDataset):
            known[name.lower()] = reader
    for path in CONFIGS.glob("*.yaml"):
        cfg = get_cfg_default()
        cfg.merge_from_file(str(path))
        if cfg.DATASET.NAME.lower() in known:
            known[path.stem] = known[cfg.DATASET.NAME.lower()]
    found = []
    for name in names:
        if name == "all":
            found += [known[source.lower()] for source in SOURCES]
        elif name.lower() in known:
            found.append(known[name.lower()])
        else:
            names = ", ".join(sorted({reader.__name__ for reader in known.values()}))
            raise UserError(f"unknown data set '{name}'{suggest(name, known)}; there are {names}")
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


def report(readers: list[type[ImageDataset]], args: argparse.Namespace) -> bool:
    """Print the table; return whether all is complete."""
    findings = [check(reader, args.root, args.decode) for reader in readers]
    print(table(findings))
    absent = [finding.name for finding in findings if not finding.found and finding.name in SOURCES]
    if absent and args.check:
        command = f"python scripts/prepare_data.py {' '.join(absent)} --root {args.root}"
        print(f"To get what is not there: {command}")
    return all(finding.complete for finding in findings)

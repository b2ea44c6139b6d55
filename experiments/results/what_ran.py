"""What rows ran with, in words: the backbone, the schedule, the versions of the code.

Where the methods of a table differ in one of these, a line beneath the table says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PureWindowsPath
from typing import Any

from experiments.results.scores import Score

Facts = dict[str, str]  # by the words of `FACTS`, as far as the runs say
FACTS = ("backbone", "schedule", "versions")
_FILES = (".pt", ".pth", ".bin", ".safetensors")
_WRITTEN = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
_PACKAGES = ("dept", "torch")  # whose versions may change a number


def facts(scores: Sequence[Score]) -> Facts:
    """Return what the runs of a row say: {"schedule": "10 epochs, batch 4, SGD at 0.0035", …}."""
    found = {
        "backbone": next((_backbone(score) for score in scores if score.backbone), ""),
        "schedule": next(filter(None, map(_schedule, scores)), ""),
        "versions": _versions(scores),
    }
    return {name: text for name, text in found.items() if text}


def _backbone(score: Score) -> str:
    """Its name; of a file the last part, and the beginning of its hash."""
    name = score.backbone
    if not name.endswith(_FILES):
        return name
    sha = score.result.get("backbone_sha256") or ""
    return f"{PureWindowsPath(name).name} {sha[:8]}".strip()  # it knows both slashes


def _schedule(score: Score) -> str:
    if not score.seeded:
        return ""  # nothing is trained
    told = score.settings.get
    name, rate = str(told("OPTIM.NAME") or "rate"), told("OPTIM.LR")
    parts = [
        _said(told("OPTIM.MAX_EPOCH"), "{} epochs", "{} epoch"),
        _said(told("DATALOADER.TRAIN_X.BATCH_SIZE"), "batch {}"),
        _said(rate, f"{_WRITTEN.get(name, name)} at {{}}" if name != "rate" else "rate {}"),
    ]
    return ", ".join(filter(None, parts))


def _said(value: Any, text: str, of_one: str = "") -> str:
    return "" if value is None else (of_one if value == 1 and of_one else text).format(value)


def _versions(scores: Iterable[Score]) -> str:
    told = []
    for package in _PACKAGES:
        found = (score.result.get("versions", {}).get(package) for score in scores)
        if versions := sorted({str(version) for version in found if version}):
            told.append(f"{package} {'/'.join(versions)}")
    return ", ".join(told)


def told_apart(named: Iterable[tuple[str, Facts]]) -> list[str]:
    """Return a line for each fact in which methods differ, of (name, what it ran with)."""
    named = list(named)
    lines = []
    for fact in FACTS:
        groups: dict[str, dict[str, None]] = {}
        for name, of_it in named:
            if fact in of_it:
                groups.setdefault(of_it[fact], {})[name] = None
        if len(groups) > 1:
            last = max(groups, key=lambda text: len(groups[text]))
            few = [f"{text} ({', '.join(g)})" for text, g in groups.items() if text != last]
            whose = "the others" if len(groups[last]) > 2 else ", ".join(groups[last])
            lines.append(f"{fact}: {'; '.join([*few, f'{last} ({whose})'])}")
    return lines

"""What there is to train, and on what: `train.py --list`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dassl.engine import TRAINER_REGISTRY
from tuning.naming import bare_name, is_wrapped

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def listing() -> str:
    """Every registered trainer with its configs and the first line of its file, then data sets.

    DePT around a trainer is marked at it, not listed beside it.
    """
    import trainers

    trainers.modules()
    names = TRAINER_REGISTRY.registered_names()
    bare = sorted((name for name in names if not is_wrapped(name)), key=str.lower)
    around = {bare_name(name) for name in names if is_wrapped(name)}
    width = max(map(len, bare))
    lines = ["Trainers (+: also as DePT_…), and the files in configs/trainers/<name>/"]
    for name in bare:
        mark = "+" if name in around else " "
        lines.append(f"  {name:{width}} {mark} {_first_line(TRAINER_REGISTRY.get(name))}")
        if configs := _stems(_CONFIGS / "trainers" / name):
            lines.append(f"  {'':{width}}   {', '.join(configs)}")
    lines += ["", "Data sets: configs/datasets/<name>.yaml"]
    lines += [f"  {name}" for name in _stems(_CONFIGS / "datasets")]
    return "\n".join(lines)


def all_trainers() -> tuple[list[str], dict[str, str]]:
    """Trainers that need a data set and nothing else, in order; the others, and what they need.

    Without those of dropped-in files that have no config.
    """
    import trainers

    trainers.modules()
    found, needs = [], {}
    for name in sorted(TRAINER_REGISTRY.registered_names(), key=lambda n: (bare_name(n), n)):
        method = getattr(TRAINER_REGISTRY.get(name), "method_class", None)
        keys = (*getattr(method, "needs_files", ()), getattr(method, "teacher_key", ""))
        if wanted := ", ".join(key for key in keys if key):
            needs[name] = wanted
        elif _stems(_CONFIGS / "trainers" / name):
            found.append(name)
    return found, needs


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _first_line(trainer: Any) -> str:
    """The first line of its file's docstring, which names the paper."""
    module = getattr(trainer, "described_in", "") or trainer.__module__
    text = sys.modules[module].__doc__ or trainer.__doc__ or ""
    return text.strip().partition("\n")[0]

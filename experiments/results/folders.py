"""Where a run's folder lies, and what a folder's path says about its run.

    <output>/base2new/train_base/<data set>/shots_<S>/<Trainer>/<config>/seed<N>
    <output>/base2new/test_new/…                      the same model, tested on the new classes
    <output>/base2new/test_all/…                      and on base and new classes together
    <output>/all_classes/train_all/…                  trained and tested on all classes
    <output>/transductive/train_all/…                 trained on all images, from a teacher
    <output>/transductive/test_<base or new>/…        the same model, tested on either half
    <output>/cross_dataset/from_<source>/…            a model of all_classes, tested elsewhere
    <output>/domain_generalization/from_<source>/…
    <output>/corruptions/<corruption>_<severity>_<base or new>/…    a model of base2new

<config> is the name of configs/trainers/<Trainer>/<name>.yaml; settings changed on the command line
follow it as `name@KEY=VALUE,…`, so that two configurations never share a folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TRANSDUCTIVE = "transductive"  # the protocol, and the group of its folders
TOGETHER = "test_all"  # the stage of a model of base classes that is tested on all
_TAIL = r"/seed(?P<seed>\d+)$"
# Ours and CoOp's; DePT's public runner; CoOp's cross-dataset and few-shot scripts.
_PATTERNS = [
    re.compile(pattern + _TAIL)
    for pattern in (
        r"(?P<stage>[^/]+)/(?P<dataset>[^/]+)/shots_(?P<shots>-?\d+)/(?P<trainer>[^/]+)/(?P<config>[^/]+)",
        r"(?P<stage>[^/]+)/(?P<trainer>[^/]+)/(?P<dataset>[^/]+)/shots(?P<shots>-?\d+)/(?P<config>[^/]+)",
        r"(?P<stage>evaluation)/(?P<trainer>[^/]+)/(?P<config>[^/]+)_(?P<shots>\d+)shots"
        r"(?:/(?P<variant>nctx[^/]+))?/(?P<dataset>[^/]+)",
        r"(?P<dataset>[^/]+)/(?P<trainer>[^/]+)/(?P<config>[^/]+)_(?P<shots>\d+)shots"
        r"(?:/(?P<variant>nctx[^/]+))?",
    )
]


@dataclass(frozen=True)
class Place:
    """What a run folder's path says. `group` is the folder above the stage."""

    stage: str
    dataset: str
    shots: int
    trainer: str
    config: str
    seed: int
    group: str = ""

    @property
    def folder(self) -> Path:
        """The run's folder, relative to the output folder."""
        return (
            Path(self.group, self.stage, self.dataset, f"shots_{self.shots}")
            / self.trainer
            / self.config
            / f"seed{self.seed}"
        )


def read_place(folder: Path) -> Place | None:
    """Return what the path of a run's folder says, or None if it follows no known layout."""
    text = folder.absolute().as_posix()
    for pattern in _PATTERNS:
        if match := pattern.search(text):
            found = match.groupdict()
            return Place(
                stage=found.get("stage") or "",
                dataset=found["dataset"],
                shots=int(found["shots"]),
                trainer=found["trainer"],
                config=" ".join(filter(None, [found["config"], found.get("variant")])),
                seed=int(found["seed"]),
                group=Path(text[: match.start()]).name,
            )
    return None


def config_label(config: str, changes: Sequence[str]) -> str:
    """Return the folder name of `config` with the settings `changes` (KEY, VALUE, KEY, VALUE …)."""
    if not changes:
        return config
    pairs = [f"{key}={value}" for key, value in zip(changes[::2], changes[1::2], strict=True)]
    plain = ",".join(sorted(pairs))
    safe = re.sub(r"[^\w.,=+-]", "_", plain)
    if safe != plain or len(safe) > 150:
        safe = f"{safe[:150]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
    return f"{config}@{safe}"


def changed_settings(config: str) -> dict[str, str]:
    """Return the settings in a folder name made by `config_label`, as far as it has them.

    A name that was cut, or written without odd signs, ends in a hash, which is left out.
    """
    _, _, changes = config.partition("@")
    plain = re.sub(r"-[0-9a-f]{8}$", "", changes)
    return dict(pair.split("=", 1) for pair in plain.split(",") if "=" in pair)

"""A trained model in three lines, from any folder.

    import dept

    model = dept.load("output/…/seed1")    # a run, a checkpoint, or what scripts/export.py wrote
    print(model(["photo.jpg"], top=3))

`python -m pip install -e PATH/TO/THIS/REPOSITORY` makes this the only package that is installed.
The repository's rooms have names that others have too, `clip` and Hugging Face's `datasets` among
them. They are imported under these names only while one of the calls below runs, and put away when
it ends, so that the rest of a program has its own.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Model", "load"]

_ROOT = Path(__file__).resolve().parents[1]
_ROOMS = ("clip", "dassl", "datasets", "experiments", "mini_world", "trainers", "tuning")
_lock = threading.RLock()
_ours: dict[str, ModuleType] = {}


def _is_room(name: str) -> bool:
    return name.partition(".")[0] in _ROOMS


@contextmanager
def _inside() -> Iterator[None]:
    """The repository's rooms are what `import` finds; afterwards what was there before is."""
    if not (_ROOT / "tuning").is_dir():
        raise ImportError(f"{_ROOT} is not the repository: install it with pip install -e")
    with _lock:
        theirs = {name: sys.modules.pop(name) for name in [*sys.modules] if _is_room(name)}
        nested = bool(theirs) and theirs.items() <= _ours.items()
        sys.modules.update(theirs if nested else _ours)
        sys.path.insert(0, str(_ROOT))
        try:
            yield
        finally:
            sys.path.remove(str(_ROOT))
            found = {name: sys.modules.pop(name) for name in [*sys.modules] if _is_room(name)}
            _ours.update(found)
            sys.modules.update(theirs)


class Model:
    """A trained model that classifies images; `load` makes it."""

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor
        self.classes: list[str] = list(predictor.classes)

    def __call__(self, images: Sequence[Any], top: int = 5) -> list[list[Any]]:
        """The `top` likeliest classes of each image, likeliest first: (classname, probability).

        Args:
            images: paths of image files, or PIL images.
            top: how many classes.

        Raises:
            UserError: a file is no image.
        """
        with _inside():
            guesses = self._predictor(images, top)
        return [[(guess.classname, guess.probability) for guess in best] for best in guesses]

    def logits(self, images: Sequence[Any]) -> Any:
        """(B,C) logits of PIL images, fp32 on the CPU, over `classes`."""
        with _inside():
            run = self._predictor.run
            views = [run.preprocess(image.convert("RGB")) for image in images]
            return run.logits(views, self._predictor.asked)


def load(
    model: str | os.PathLike, classes: Sequence[str] | None = None, backbone: str = ""
) -> Model:
    """The trained model of a run, a checkpoint in it, or an exported folder.

    Args:
        model: its path; of an exported model also the name of a repository on Hugging Face's hub.
        classes: names of your own to choose from; by default those it was trained on.
        backbone: CLIP's name or file, if not the run's.

    Raises:
        UserError: there is no such model.
    """
    with _inside():
        from tuning.exported import DESCRIPTION, ExportedModel
        from tuning.prediction import Predictor

        exported = os.path.isfile(os.path.join(model, DESCRIPTION)) or not os.path.exists(model)
        if not exported:
            return Model(Predictor(model, classes, backbone))
        found = ExportedModel.from_pretrained(model)
        if classes or backbone:
            found = ExportedModel(found.run.folder, backbone)
            found.take(found.run, classes)
        return Model(found)

"""What a method may see beside labeled training images and their classes' names: a closed list.

A method declares its words (`Method.sees`, `Method.what_it_sees`), a run's result.json has those
that applied ("sees"), and tables mark the method with their letters. Without PyTorch, as tables of
results ask too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from dassl.config.identity import is_identity

if TYPE_CHECKING:
    from tuning.method import Method


class Sight(NamedTuple):
    """A word's letter in tables, and what it says in a footnote."""

    mark: str
    meaning: str


SEES = {
    "new_class_names": Sight("N", "names of classes that it isn't trained on"),
    "unlabeled_images": Sight("U", "images without labels"),
    "images_of_new_classes": Sight("I", "images of classes that it isn't trained on"),
    "teacher": Sight("T", "a second trained model"),
    "language_model_text": Sight("L", "sentences by a language model"),
    "other_data_sets": Sight("D", "labeled images of other data sets"),
    "validation_images": Sight("V", "validation images, for a choice"),
    "test_images": Sight("X", "test images, for a choice"),
    "settings_per_data_set": Sight("S", "settings chosen for each data set"),
}


def known(words: Iterable[object]) -> tuple[str, ...]:
    """Those of the words that are in `SEES`, in its order."""
    said = list(words)
    return tuple(word for word in SEES if word in said)


def marks(words: Iterable[str]) -> str:
    """The letters of words of `SEES`, "N,T"; "" for none."""
    return ",".join(SEES[word].mark for word in known(words))


def footnotes(words: Iterable[str]) -> list[str]:
    """A line for each word: "[T] sees a second trained model"."""
    return [f"[{SEES[word].mark}] sees {SEES[word].meaning}" for word in known(words)]


def meanings(words: Iterable[str]) -> str:
    """What the words say, one after the other; "nothing further" for none."""
    return "; ".join(SEES[word].meaning for word in known(words)) or "nothing further"


class Seeing:
    """The part of a trainer that knows what its run saw."""

    cfg: Any
    dm: Any
    method: Method
    method_class: type[Method]
    trains: bool
    prepares: Callable[[], bool]
    further: Any  # other data sets that it trains on
    validates: Any
    validates_on_test_images: Any
    # What the model that is loaded saw, None if it doesn't say; and the one that it starts from.
    _model_saw: tuple[str, ...] | None = None
    _start_saw: tuple[str, ...] = ()
    _model_classes: str | None = None  # of the model that is loaded

    def seeing(self) -> dict[str, Any]:
        """What result.json says of it."""
        return {
            "sees": self.seen(),
            "model_classes": self.model_classes(),
            "chosen": self.method.chosen(),
            "seeded": self.seeded(),
        }

    @classmethod
    def seeded(cls) -> bool:
        """Whether its numbers may depend on the seed: it trains, or looks at training images."""
        return cls.trains or cls.prepares()

    def seen(self) -> list[str]:
        """What it saw beyond the labeled training images and their classes' names, of `SEES`.

        A model that is tested saw what its checkpoint says, and one that starts from another what
        that saw, too.
        """
        if self._model_saw is not None:
            return list(self._model_saw)
        sees = set(self.method_class.what_it_sees(self.cfg))
        if not self.method.classes.others:
            sees.discard("new_class_names")
        if not self.further:
            sees.discard("other_data_sets")
        if self.cfg.DATASET.SENTENCES:  # "" where its method takes none
            sees.add("language_model_text")
        if self.cfg.TRAINER.SETTINGS_PER_DATA_SET:
            sees.add("settings_per_data_set")
        if self.validates:
            sees.add("validation_images")
        if "validation_images" in sees and self.validates_on_test_images():
            sees = (sees - {"validation_images"}) | {"test_images"}
        if self.method.teacher_run is not None and self.method.teacher_run.is_read:
            sees |= {"teacher", *self.method.teacher_run.sees}
        return list(known({*sees, *self._start_saw}))

    def model_classes(self) -> str:
        """Which classes the model was trained on: all, base or new ones."""
        return self._model_classes or self.cfg.DATASET.SUBSAMPLE_CLASSES

    def remember_seen(self, checkpoint: dict[str, Any], start: bool) -> None:
        """Take what a checkpoint says: of the model itself, or of the one that it starts from.

        One to start from has also seen its images, where they are of another data set.
        """
        words = checkpoint.get("sees")
        identity: Any = checkpoint.get("identity")
        settings = identity["settings"] if is_identity(identity) else {}
        if start:
            name = self.cfg.DATASET.NAME
            classes = {*self.dm.label_space, *self.dm.class_keys}
            own = classes.issuperset(checkpoint.get("class_keys") or ())
            own = own and settings.get("DATASET.NAME", name) == name
            self._start_saw = known((*(words or ()), *(() if own else ("other_data_sets",))))
        else:
            self._model_saw = None if words is None else known(words)
            self._model_classes = settings.get("DATASET.SUBSAMPLE_CLASSES")

"""One labeled image, and a data set made of lists of them."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from dassl.utils import UserError


def number_of_base(classes: int) -> int:
    """How many of so many classes, the first in label order, are base classes: ⌈n/2⌉."""
    return math.ceil(classes / 2)


@dataclass(frozen=True, slots=True)
class Datum:
    """An image file and what is known about it.

    Args:
        impath: path of the image.
        label: class number, from 0.
        domain: domain number, from 0.
        classname: the class's name as it enters a prompt.
        class_key: the class's stable identity where the name is not unique (ImageNet: the WordNet
            id); the class name if not given.
    """

    impath: str = ""
    label: int = 0
    domain: int = 0
    classname: str = ""
    class_key: str = ""

    def __post_init__(self) -> None:
        if not self.class_key:
            object.__setattr__(self, "class_key", self.classname)


class DatasetBase:
    """The lists a run needs; a data set fills them in its `__init__(cfg)`.

    Args:
        train_x: labeled training images. They define the classes.
        train_u: unlabeled training images.
        val: validation images.
        test: test images. They define the classes where there is no `train_x`.

    Raises:
        UserError: if labels are not 0…C-1, or a class has two names, or an image that is to be
            evaluated belongs to no class.
    """

    dataset_dir: str = ""  # the folder under DATASET.ROOT
    domains: Sequence[str] = ()
    template: str = "a photo of a {}."  # the data set's hand-written prompt
    # Names by class key of all classes there are to choose from, in label order, where a run has
    # some of them. Names may be equal; the order tells which of them a class is.
    label_space: Mapping[str, str] = {}
    # Templates under other names, for methods that ask for one: {name: template}.
    other_templates: Mapping[str, str] = MappingProxyType({})
    # Whether an ensemble of general templates takes in the data set's own.
    template_joins_ensembles: bool = True

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test

        name = type(self).__name__
        classes: dict[int, tuple[str, str]] = {}
        for item in train_x or test or []:
            found = classes.setdefault(item.label, (item.classname, item.class_key))
            if found != (item.classname, item.class_key):
                raise UserError(
                    f"{name}: label {item.label} has two classes, {found[0]!r} and "
                    f"{item.classname!r} ({item.impath})"
                )
        if not classes:
            raise UserError(f"{name}: neither training nor test images were found")
        if sorted(classes) != list(range(len(classes))):
            missing = min(set(range(len(classes))) - set(classes))
            raise UserError(f"{name}: no training image has label {missing}; labels must be 0…C-1")
        for item in [*(val or []), *(test or [])]:
            if item.label not in classes:
                raise UserError(
                    f"{name}: class {item.classname!r} (label {item.label}) is evaluated "
                    f"({item.impath}) but has no training image"
                )
        self._lab2cname = {label: classes[label][0] for label in sorted(classes)}
        self._class_keys = [classes[label][1] for label in sorted(classes)]
        if not self.label_space:
            self.label_space = dict(zip(self._class_keys, self.classnames, strict=True))

    @property
    def train_x(self) -> list[Datum] | None:
        """Labelled training images."""
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        """Unlabeled training images."""
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        """Validation images."""
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        """Test images."""
        return self._test

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self._lab2cname)

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name by label."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """The C class names in the order of their labels."""
        return list(self._lab2cname.values())

    @property
    def class_keys(self) -> list[str]:
        """The C stable class identities in the order of their labels."""
        return list(self._class_keys)

    def rename_classes(self, names: Sequence[str]) -> None:
        """Let prompts have other names of the C classes; keys and label space stay."""
        self._lab2cname = dict(zip(self._lab2cname, names, strict=True))

    def check_input_domains(
        self, source_domains: Sequence[str], target_domains: Sequence[str]
    ) -> None:
        """Raise UserError if one of the names is not in `domains`."""
        for domain in [*source_domains, *target_domains]:
            if domain not in self.domains:
                raise UserError(
                    f"{type(self).__name__} has no domain {domain!r}; it has "
                    + ", ".join(self.domains)
                )

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> list[Datum] | list[list[Datum]]:
        """Draw `num_shots` images per class from each list, with python's global generator.

        The draw is the one of the original code: labels in the order of their first appearance,
        `random.sample` for each. A class with fewer images is taken whole, in list order and
        without using the generator, or with `repeat` filled up by drawing with replacement.
        `num_shots` below 1 returns the lists as they are.

        Returns:
            One list if one was given, else a list of lists.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else list(data_sources)
        print(f"Creating a {num_shots}-shot dataset")
        drawn = [
            [
                item
                for items in self.split_dataset_by_label(data_source).values()
                for item in _draw(items, num_shots, repeat)
            ]
            for data_source in data_sources
        ]
        return drawn[0] if len(drawn) == 1 else drawn

    def split_dataset_by_label(self, data_source: list[Datum]) -> dict[int, list[Datum]]:
        """Group a list by label, labels in the order of their first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: list[Datum]) -> dict[int, list[Datum]]:
        """Group a list by domain, domains in the order of their first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups


def _draw(items: list[Datum], num_shots: int, repeat: bool) -> list[Datum]:
    if len(items) >= num_shots:
        return random.sample(items, num_shots)
    return random.choices(items, k=num_shots) if repeat else items

"""The classes of a run, as a method is told them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Classes:
    """The classes of a run. names: for prompts; keys: their identity; template: with one {}.

    label_space: names by key of all classes they were chosen from, in label order; {} if none but
    they. template_joins_ensembles: whether an ensemble of general templates takes it in.
    others: names by key of the label space's other classes, in a run whose method declares that it
    sees "new_class_names". images: how many there are to train on; 0 outside of a training run.
    further: those of the data sets that are trained on beside the run's own (DATASET.FURTHER).
    other_templates: the data set's templates under other names; {} where DATASET.TEMPLATE was asked
    for, which then stands for all of them.
    described: each class's own sentences by key, {} without a file; undescribed: what it lacks.
    """

    names: list[str]
    keys: list[str]
    template: str = "a photo of a {}."
    label_space: Mapping[str, str] = field(default_factory=dict)
    template_joins_ensembles: bool = True
    others: Mapping[str, str] = field(default_factory=dict)
    images: int = 0
    further: tuple[Classes, ...] = ()
    other_templates: Mapping[str, str] = field(default_factory=dict)
    described: Mapping[str, Sequence[str]] = field(default_factory=dict)
    undescribed: str = ""

    def template_named(self, name: str) -> str:
        """The data set's template of this name; its usual one where it has none."""
        return self.other_templates.get(name, self.template)

    def with_others(self) -> Classes:
        """These C classes, then the `others`: for features of further names."""
        names, keys = [*self.names, *self.others.values()], [*self.keys, *self.others]
        return replace(self, names=names, keys=keys, others={})

    def sentences(self, template: str | None = None) -> list[str]:
        """The template filled with every class name, underscores as spaces."""
        template = template or self.template
        return [template.replace("{}", name.replace("_", " ")) for name in self.names]

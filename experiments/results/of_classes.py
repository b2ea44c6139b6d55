"""Pictures of single classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from experiments.results.pictures import COLORS, Panel, Picture, shortened
from experiments.results.subjects import Subjects, chosen_shots, told_shots
from experiments.results.summary import Summary

PANELS = 24  # at most, of a picture that has one for each method, data set and set of classes
BARS = 40


def class_gains(summary: Summary, shots: int | None = None) -> Picture | None:
    """What DePT changes per class: mean accuracy over seeds with it less without it."""
    accuracies: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    subject, told = Subjects(summary), told_shots(summary, shots)
    chosen = chosen_shots(summary, shots)
    for score in summary.scores:
        if score.protocol == "base_to_new" and score.shots == chosen:
            for entry in score.result.get("per_class") or ():
                key = (subject(score), score.dataset, score.classes)
                accuracies[key][entry["classname"]].append(entry["accuracy"])
    shown = {subject(record) for record in summary.usual("base_to_new")}
    panels = {}
    for (method, *rest), classes in accuracies.items():
        bare = accuracies.get((subject.bare.get(method), *rest))
        if bare and method in shown:
            title = f"{method.label.strip()}, {rest[0]}, {rest[1]}{told}"
            both = [name for name in classes if name in bare]
            gains = {n: float(np.mean(classes[n]) - np.mean(bare[n])) for n in both}
            panels[title] = dict(sorted(gains.items(), key=lambda pair: pair[1]))
    if not panels:
        return None
    made = []
    for title, gains in list(panels.items())[:PANELS]:
        size = (3.2, 0.9 + 0.16 * min(len(gains), BARS))
        made.append(Panel(title, partial(_bars, gains=gains), _told(gains), size))
    left = len(panels) - len(made)
    note = f"{left} more are left out; --trainers and --datasets choose." if left else ""
    return Picture(f"Gain of DePT per class{told}", made, legend=False, note=note)


def _bars(axis: Axes, gains: Mapping[str, float]) -> None:
    names, values = list(gains), list(gains.values())
    if len(names) > BARS:  # the ends tell the story
        names = names[: BARS // 2] + names[-(BARS // 2) :]
        values = values[: BARS // 2] + values[-(BARS // 2) :]
    signs = [COLORS[0] if value >= 0 else COLORS[1] for value in values]
    axis.barh(range(len(names)), values, color=signs)
    axis.set_yticks(range(len(names)), map(shortened, names), fontsize=6)
    axis.axvline(0, color="black", lw=0.6)
    axis.set_xlabel("gain (points)")


def _told(gains: Mapping[str, float]) -> str:
    up = sum(value > 0 for value in gains.values())
    (low, least), *_, (high, most) = [*gains.items()] * (1 + (len(gains) == 1))
    return (
        f"{up} of {len(gains)} classes gain; most {high} ({most:+.1f} points), "
        f"least {low} ({least:+.1f})."
    )

"""Pictures of single classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from experiments.results.pictures import COLORS, Panel, Picture, shortened
from experiments.results.summary import Summary
from experiments.results.sweeps import is_swept
from tuning.naming import bare_name, is_wrapped

PANELS = 24  # at most, of a picture that has one for each method, data set and set of classes
BARS = 40


def class_gains(summary: Summary) -> Picture | None:
    """What DePT changes per class: mean accuracy over seeds with it less without it."""
    accuracies: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in summary.scores:
        for entry in score.result.get("per_class") or ():
            if score.protocol == "base_to_new" and not is_swept(score.config):
                key = (score.trainer, score.dataset, score.classes, score.shots)
                accuracies[key][entry["classname"]].append(entry["accuracy"])
    panels = {}
    for (trainer, *rest), classes in accuracies.items():
        bare = accuracies.get((bare_name(trainer), *rest))
        if bare and is_wrapped(trainer):
            title = f"{trainer}, {rest[0]}, {rest[1]}"
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
    return Picture("Gain of DePT per class", made, legend=False, note=note)


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

"""Pictures of single classes, and of how sure predictions are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from experiments.results.outcomes import BINS, Part, Tally
from experiments.results.pictures import COLORS, Panel, Picture, shortened
from experiments.results.subjects import Look, Subject, Subjects, chosen_shots, told_shots
from experiments.results.summary import Summary

PANELS = 24  # at most, of a picture that has one for each method, data set and set of classes
BARS = 40
SIDE = 25  # classes of a matrix, at most: of more the pairs most often confused are shown
PAIRS = 12
FEW = 6  # methods in a panel whose single points can be told apart
# From nothing to blue, so that it stands on a dark page too.
SHARES = ListedColormap([(0.0, 0.45, 0.7, i / 255) for i in range(256)])


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
    _name_bars(axis, [shortened(name) for name in names])
    axis.axvline(0, color="black", lw=0.6)
    axis.set_xlabel("gain (points)")


def _name_bars(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=6)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)


def _told(gains: Mapping[str, float]) -> str:
    up = sum(value > 0 for value in gains.values())
    (low, least), *_, (high, most) = [*gains.items()] * (1 + (len(gains) == 1))
    return (
        f"{up} of {len(gains)} classes gain; most {high} ({most:+.1f} points), "
        f"least {low} ({least:+.1f})."
    )


def confusions(
    found: Mapping[Part, Mapping[Subject, Tally]], styles: Mapping[Subject, Look], told: str = ""
) -> Picture | None:
    """Which classes are taken for which, by the method with the highest accuracy of each part."""
    made = []
    for (dataset, classes), methods in found.items():
        method, tally = max(methods.items(), key=lambda pair: pair[1].accuracy)
        names, pairs = tally.names, tally.confused(PAIRS)
        title = f"{dataset}, {classes} classes: {method.label.strip()}"
        if len(names) <= SIDE:
            draw = partial(draw_matrix, counts=tally.counts, names=names)
            size = (2.2 + 0.14 * max(len(names), 10), 2.0 + 0.14 * max(len(names), 10))
        else:
            draw, size = partial(_pairs, pairs=pairs), (4.4, 0.9 + 0.18 * PAIRS)
        first = [f"{a} taken for {b}: {n} of {of} images" for a, b, n, of in pairs[:3]]
        says = "Most often confused: " + ("; ".join(first) or "none") + "."
        says = f"{tally.accuracy:.1f} % of {tally.counts.sum():,} predictions are right. {says}"
        made.append(Panel(title, draw, says, size))
    note = "Of each data set the method with the highest accuracy; --trainers chooses others."
    title = f"Confused classes{told}"
    return Picture(title, made, legend=False, note=note) if made else None


def draw_matrix(axis: Axes, counts: np.ndarray, names: Sequence[str]) -> None:
    """Draw counts (C, C) of true by predicted classes, as shares of the true one's images.

    Of few classes the shares from 5 % stand in their places.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, SHARES, vmin=0, vmax=1)
    for row, column in np.argwhere(shares >= 0.05) if len(names) <= SIDE else ():
        percent = f"{100 * shares[row, column]:.0f}"
        axis.text(column, row, percent, fontsize=5, ha="center", va="center")
    axis.grid(visible=False)
    axis.set(xlabel="predicted", ylabel="true", xticks=[], yticks=[])
    if len(names) <= 50:
        short = [shortened(name) for name in names]
        axis.set_xticks(range(len(names)), short, rotation=90, fontsize=6)
        axis.set_yticks(range(len(names)), short, fontsize=6)


def _pairs(axis: Axes, pairs: Sequence[tuple[str, str, int, int]]) -> None:
    shares = [100 * n / of for *_, n, of in pairs]
    labels = [f"{shortened(a, 16)} → {shortened(b, 16)}" for a, b, *_ in pairs]
    axis.barh(range(len(pairs)), shares, color=COLORS[0])
    _name_bars(axis, labels)
    axis.invert_yaxis()
    axis.set_xlabel("% of the images of a class taken for another")


def calibration(
    found: Mapping[Part, Mapping[Subject, Tally]], styles: Mapping[Subject, Look], told: str = ""
) -> Picture | None:
    """Accuracy against confidence: on the diagonal a method knows how often it is right."""
    made = []
    for (dataset, classes), methods in found.items():
        draw = partial(_reliability, methods=methods, styles=styles)
        says = f"Accuracy against confidence in {BINS} bins; {_errors(methods)}."
        made.append(Panel(f"{dataset}, {classes} classes", draw, says, size=(2.9, 3.1)))
    return Picture(f"Calibration{told}", made) if made else None


def _reliability(
    axis: Axes, methods: Mapping[Subject, Tally], styles: Mapping[Subject, Look]
) -> None:
    axis.plot([0, 1], [0, 1], color="#999999", lw=0.8)
    for method, tally in methods.items():
        at, look = tally.images > 0, styles[method]
        axis.plot(
            tally.sure[at] / tally.images[at],
            tally.right[at] / tally.images[at],
            "-" if method.wrapped else "--",
            marker=look.marker if len(methods) <= FEW else None,
            ms=3,
            lw=1,
            color=look.color,
            label=method.label,
        )
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    errors = (shortened(line, 40) for line in _errors(methods).split("; "))
    axis.set_xlabel("confidence\n" + "\n".join(errors))


def _errors(methods: Mapping[Subject, Tally]) -> str:
    """Say the mean calibration errors over seeds; of many methods the lowest and the highest."""
    ece = {m.label.strip(): float(np.mean(t.ece)) for m, t in methods.items() if t.ece}
    if not ece:
        return "calibration errors: not told by the runs"
    ranked = sorted(ece.items(), key=lambda pair: pair[1])
    shown = ranked if len(ranked) <= 4 else [ranked[0], ranked[-1]]
    said = "; ".join(f"ECE {value:.1f}: {name}" for name, value in shown)
    return said if len(ranked) <= 4 else f"{said} (lowest, highest of {len(ranked)})"

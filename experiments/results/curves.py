"""Lines over epochs, shots or weights: a panel per data set, a line with a band per method."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dassl.utils import UserError, check_kind, check_percent, read_json_lines
from experiments.results.pictures import MARKERS, Panel, Picture
from experiments.results.records import AVERAGE
from experiments.results.subjects import Look, Subject, Subjects, chosen_shots, told_shots
from experiments.results.summary import Summary
from experiments.results.tables import method_order

Points = list[tuple[float, float, float]]  # x, mean, spread


def curves(
    title: str,
    lines: Mapping[tuple[str, Subject], Points],
    xlabel: str,
    ylabel: str,
    styles: Mapping[Subject, Look],
) -> Picture | None:
    """Return {(panel, method): [(x, mean, spread), …]} as lines with bands; None if there are none.

    The average comes first.
    """
    panels: dict[str, dict[Subject, Points]] = defaultdict(dict)
    for (name, method), points in lines.items():
        panels[name][method] = sorted(points)
    made = []
    for name in sorted(panels, key=lambda name: (name != AVERAGE, name)):
        draw = partial(_lines, of=panels[name], labels=(xlabel, ylabel), styles=styles)
        made.append(Panel(name, draw, _ends(panels[name], xlabel, ylabel)))
    return Picture(title, made) if made else None


def _lines(
    axis: Axes,
    of: Mapping[Subject, Points],
    labels: tuple[str, str],
    styles: Mapping[Subject, Look],
) -> None:
    for method, points in of.items():
        x, mean, spread = np.array(points).T
        look = styles[method]
        axis.plot(
            x,
            mean,
            "-" if method.wrapped else "--",
            marker=look.marker if len(x) < 15 or look.marker != MARKERS[0] else None,
            markevery=max(1, len(x) // 8) if len(x) >= 15 else None,
            ms=3,
            color=look.color,
            label=method.label,
        )
        axis.fill_between(x, mean - spread, mean + spread, color=look.color, alpha=0.15, lw=0)
    axis.set(xlabel=labels[0], ylabel=labels[1])


def _ends(of: Mapping[Subject, Points], xlabel: str, ylabel: str) -> str:
    """Say where the lines begin and end; of many those that end highest and lowest."""
    ranked = sorted(of.items(), key=lambda pair: -pair[1][-1][1])
    shown = ranked if len(ranked) <= 4 else [ranked[0], ranked[-1]]
    said = [
        f"{method.label.strip()} from {points[0][1]:.4g} at {points[0][0]:g} to "
        f"{points[-1][1]:.4g} at {points[-1][0]:g}"
        for method, points in shown
    ]
    which = "" if len(ranked) <= 4 else f" ({len(ranked)} methods; those that end highest, lowest)"
    return f"{ylabel} over {xlabel}{which}: {'; '.join(said)}."


def learning_curves(summary: Summary, shots: int | None = None) -> Picture | None:
    """Mean training loss per epoch over seeds, per data set and method."""
    lines = _over_epochs(summary, shots, lambda line: line["loss"])
    title = f"Learning curves{told_shots(summary, shots)}"
    return curves(title, lines, "epoch", "training loss", Subjects(summary).looks)


def validation_curves(summary: Summary, shots: int | None = None) -> Picture | None:
    """Mean accuracy on the validation images after each epoch, of runs that chose one by it."""
    lines = _over_epochs(summary, shots, lambda line: line.get("val", {}).get("accuracy"), False)
    title = f"Validation curves{told_shots(summary, shots)}"
    return curves(title, lines, "epoch", "validation accuracy (%)", Subjects(summary).looks)


def _over_epochs(
    summary: Summary,
    shots: int | None,
    value: Callable[[dict[str, Any]], float | None],
    damage_told: bool = True,
) -> dict[tuple[str, Subject], Points]:
    """Return the mean and spread over seeds of a value of each epoch's line, where it has one."""
    epochs: dict[tuple[str, Subject], dict[int, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    subject, told = Subjects(summary), told_shots(summary, shots)
    chosen = chosen_shots(summary, shots)
    for score in sorted(summary.scores, key=method_order):
        if summary.is_swept(score) or score.corruption:
            continue
        path = score.folder / "metrics.jsonl"
        if score.shots == chosen and score.classes == "base" and path.exists():
            for line in _lines_of(path, damage_told):
                if (found := value(line)) is not None:
                    epochs[score.dataset + told, subject(score)][line["epoch"]].append(found)
    return {
        key: [(epoch, float(np.mean(v)), float(np.std(v))) for epoch, v in by_epoch.items()]
        for key, by_epoch in epochs.items()
    }


def _lines_of(path: Path, damage_told: bool) -> list[dict[str, Any]]:
    """Return the lines of a run's epochs; of a damaged file none."""
    try:
        lines = read_json_lines(path)
        for line in lines:
            check_kind(line.get("epoch"), int, f"{path}: the number of an epoch")
            check_kind(line.get("loss"), (int, float), f"{path}: a loss")
            check_kind(line.get("val", {}), dict, f"{path}: a validation")
            if "accuracy" in line.get("val", {}):
                check_percent(line["val"]["accuracy"], f"{path}: a validation accuracy")
    except UserError as error:
        if damage_told:
            print(f"no learning curve of a run: {error}", file=sys.stderr)
        return []
    return lines

"""Pictures of a summary. Each function returns a picture, or None if there is nothing to draw."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from experiments.results.curves import curves, learning_curves, validation_curves
from experiments.results.of_classes import calibration, class_gains, confusions
from experiments.results.outcomes import Part, Tally, tallies
from experiments.results.pictures import COLORS, Panel, Picture, beside, save, shortened
from experiments.results.records import AVERAGE, Record, shots_text
from experiments.results.subjects import (
    Look,
    Subject,
    Subjects,
    chosen_shots,
    shots_of,
    told_shots,
)
from experiments.results.summary import Summary
from experiments.results.tables import method_order


def _complete(summary: Summary, shots: int | None) -> list[Record]:
    """Return the base-to-new records with an H at so many shots, or at the most there are."""
    chosen = chosen_shots(summary, shots)
    records = (r for r in summary.usual("base_to_new") if r.shots == chosen)
    return sorted((r for r in records if "h" in r.metrics), key=method_order)


def _by_dataset(records: Iterable[Record], subject: Subjects) -> dict[str, dict[Subject, Record]]:
    """Return {data set: {method: record}}, the average first."""
    found: dict[str, dict[Subject, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda r: r.dataset != AVERAGE):
        found[record.dataset][subject(record)] = record
    return found


def base_new_arrows(summary: Summary, shots: int | None = None) -> Picture | None:
    """New against base accuracy, an arrow from each method to itself with DePT; average first.

    Like others with `shots`: at the most there are unless they are given.
    """
    subject, told = Subjects(summary), told_shots(summary, shots)
    panels = []
    for name, points in _by_dataset(_complete(summary, shots), subject).items():
        draw = partial(_arrows, points=points, subjects=subject)
        heights = {
            m.label: (r.metrics["new"].mean, subject.looks[m].color) for m, r in points.items()
        }
        aside = None if panels else partial(beside, labels=heights)
        panels.append(Panel(name + told, draw, _best(points, subject), aside=aside))
    lead = f"{panels[0].title}: {panels[0].says}" if panels else ""
    return Picture(f"Base against new{told}", panels, lead=lead) if panels else None


def _best(points: Mapping[Subject, Record], subjects: Subjects) -> str:
    """Say which method is best, and what DePT changes."""
    ranked = sorted(points, key=lambda m: -points[m].metrics["h"].mean)
    said = [_three(points[ranked[0]], ranked[0])]
    if len(ranked) > 1:
        said[0] += f": best harmonic mean of {len(ranked)} methods"
        said.append(f"{_three(points[ranked[-1]], ranked[-1])}: the lowest")
    bare = {m: subjects.bare.get(m) for m in ranked}
    pairs = [(points[b], points[m]) for m, b in bare.items() if b in points]
    higher = sum(b.metrics["h"].mean > a.metrics["h"].mean for a, b in pairs)
    if pairs:
        said.append(f"with DePT H is higher for {higher} of {len(pairs)} methods")
    return "; ".join(said) + "."


def _three(record: Record, method: Subject) -> str:
    base, new, h = (record.metrics[key].mean for key in ("base", "new", "h"))
    return f"{method.label.strip()} {base:.1f} base, {new:.1f} new, H {h:.1f}"


def _arrows(axis: Axes, points: Mapping[Subject, Record], subjects: Subjects) -> None:
    for method, record in points.items():
        _point(axis, record, method, subjects.looks[method])
    for method, record in points.items():
        if (bare := subjects.bare.get(method)) in points:
            _arrow(axis, points[bare], record, subjects.looks[method].color)
    _equal_h_lines(axis)
    axis.set_xlabel("base accuracy (%)")
    axis.set_ylabel("new accuracy (%)")


def _point(axis: Axes, record: Record, method: Subject, look: Look) -> None:
    base, new = record.metrics["base"], record.metrics["new"]
    axis.errorbar(
        base.mean,
        new.mean,
        xerr=base.std,
        yerr=new.std,
        **_marked(method, look),
    )


def _marked(method: Subject, look: Look) -> dict[str, Any]:
    """How `errorbar` draws a method: filled where DePT is around it."""
    return {
        "fmt": look.marker,
        "ms": 5,
        "color": look.color,
        "markerfacecolor": look.color if method.wrapped else matplotlib.rcParams["axes.facecolor"],
        "elinewidth": 0.7,
        "label": method.label,
    }


def _arrow(axis: Axes, start: Record, end: Record, color: str) -> None:
    tail, tip = (tuple(r.metrics[k].mean for k in ("base", "new")) for r in (start, end))
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.3, "shrinkA": 4, "shrinkB": 4}
    axis.annotate("", xy=tip, xytext=tail, arrowprops=style)


def _equal_h_lines(axis: Axes) -> None:
    """Draw faint lines of equal H behind the points."""
    axis.margins(0.15)
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    base, new = np.meshgrid(np.linspace(left, right, 20), np.linspace(bottom, top, 20))
    h = 2 * base * new / np.maximum(base + new, 1e-9)
    lines = axis.contour(base, new, h, levels=5, colors="grey", linewidths=0.5, alpha=0.5)
    axis.clabel(lines, fmt="H %.0f", fontsize=6)
    axis.set(xlim=(left, right), ylim=(bottom, top))


def dataset_ranks(summary: Summary, shots: int | None = None) -> Picture | None:
    """H of the methods on each data set, the highest at the top."""
    subject, told = Subjects(summary), told_shots(summary, shots)
    panels = []
    for name, points in _by_dataset(_complete(summary, shots), subject).items():
        ranked = sorted(points, key=lambda m: points[m].metrics["h"].mean)
        draw = partial(_ranks, points={m: points[m] for m in ranked}, styles=subject.looks)
        ends = [f"{m.label.strip()} {points[m].metrics['h'].mean:.1f}" for m in ranked]
        says = "H from the highest: " + ", ".join(reversed(ends)) + "."
        panels.append(Panel(name + told, draw, says, size=(3.6, 0.8 + 0.16 * len(ranked))))
    return Picture(f"H per data set{told}", panels, legend=False) if panels else None


def _ranks(axis: Axes, points: Mapping[Subject, Record], styles: Mapping[Subject, Look]) -> None:
    for place, (method, record) in enumerate(points.items()):
        look, h = styles[method], record.metrics["h"]
        axis.errorbar(
            h.mean,
            place,
            xerr=h.std,
            **_marked(method, look),
        )
    axis.set_yticks(range(len(points)), [shortened(m.label) for m in points], fontsize=7)
    axis.set_ylim(-0.7, len(points) - 0.3)
    axis.set_xlabel("H (%)")


def few_shot_curves(summary: Summary) -> Picture | None:
    """H, or the accuracy on all classes, over the number of shots."""
    figures = defaultdict(list)
    subject = Subjects(summary)
    for protocol, metric in (("base_to_new", "h"), ("all_classes", "accuracy")):
        for r in sorted(summary.usual(protocol), key=method_order):
            if metric in r.metrics:
                panel = f"{r.dataset}: {'H' if metric == 'h' else 'all classes'}"
                stat = r.metrics[metric]
                figures[panel, subject(r)].append((r.shots, stat.mean, stat.std or 0.0))
    lines = {key: points for key, points in figures.items() if len(points) > 1}
    return curves("Few-shot learning", lines, "images per class", "%", subject.looks)


def lambda_curves(summary: Summary) -> Picture | None:
    """Base, new and H over the weight λ of the CAT loss."""
    lines = defaultdict(list)
    records = summary.of("lambda")
    sweeps = {(r.trainer, r.family, r.shots) for r in records}
    several = len(sweeps) > len({r.trainer for r in records})
    for r in records:
        how = f" {r.family}, {shots_text(r.shots)}" if several else ""
        for metric, stat in r.metrics.items():
            name = f"{r.trainer}{how} {metric}"
            point = (float(r.dataset), stat.mean, stat.std or 0.0)
            lines[r.source, Subject(r.trainer, name, name)].append(point)
    names = dict.fromkeys(name for _, name in lines)
    styles = {name: Look(color) for name, color in zip(names, cycle(COLORS), strict=False)}
    return curves("Weight of the CAT loss (λ)", dict(lines), "λ", "%", styles)


PLOTS: dict[str, Callable[..., Picture | None]] = {
    "base_new": base_new_arrows,
    "datasets": dataset_ranks,
    "curves": learning_curves,
    "validation": validation_curves,
    "few_shot": few_shot_curves,
    "lambda": lambda_curves,
    "classes": class_gains,
}
OF_OUTCOMES = {"confusion": confusions, "calibration": calibration}
# A picture for each number of shots, as `OF_OUTCOMES` have.
OF_SHOTS = ("base_new", "datasets", "curves", "validation", "classes")


def every_plot(summary: Summary) -> dict[str, Callable[[Summary], Picture | None]]:
    """Return every plot, with one more for each further number of shots, as `base_new_4_shots`."""
    plots: dict[str, Callable[[Summary], Picture | None]] = {}
    further = {shots: "_" + shots_text(shots).replace(" ", "_") for shots in shots_of(summary)[1:]}
    for name, draw in PLOTS.items():
        plots[name] = draw
        for shots, named in further.items() if name in OF_SHOTS else ():
            plots[name + named] = partial(draw, shots=shots)
    for shots, named in {None: "", **further}.items():
        counted = cache(partial(tallies, summary, shots))  # read once for both
        for name, count in OF_OUTCOMES.items():
            plots[name + named] = partial(_of_outcomes, count, counted, shots)
    return plots


def _of_outcomes(
    draw: Callable[..., Picture | None],
    counted: Callable[[], Mapping[Part, Mapping[Subject, Tally]]],
    shots: int | None,
    summary: Summary,
) -> Picture | None:
    return draw(counted(), Subjects(summary).looks, told_shots(summary, shots))


def save_all(summary: Summary, folder: str | os.PathLike) -> list[Path]:
    """Write every plot that can be drawn as PNG and PDF; return the files."""
    files = []
    for name, draw in every_plot(summary).items():
        if (picture := draw(summary)) is not None:
            paths = [Path(folder) / f"{name}.{kind}" for kind in ("png", "pdf")]
            save(picture.figure(), *paths)
            files += paths
    return files

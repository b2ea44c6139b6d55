"""Pictures of a summary. Each function returns a figure, or None if there is nothing to draw."""

from __future__ import annotations

import io
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dassl.utils import UserError, check_kind, read_json_lines, write_bytes
from experiments.results.scores import Score
from experiments.results.summary import AVERAGE, Record, Row, Summary
from experiments.results.sweeps import is_swept
from experiments.results.tables import method_order
from tuning.naming import bare_name, is_wrapped

# Okabe and Ito's colors, distinguishable without color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
plt.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "dept",
        "text.parse_math": False,  # a $ in a name is one
        "figure.constrained_layout.use": True,
    }
)


def save(figure: Figure, *paths: str | os.PathLike) -> None:
    """Write a figure in the format of each path's ending. Raises UserError if that is none."""
    known = figure.canvas.get_supported_filetypes()
    for path in paths:
        kind = Path(path).suffix.lstrip(".")
        if kind not in known:
            raise UserError(f"{path}: no such picture format; one of: .png, .pdf, .svg")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200)
        write_bytes(buffer.getbuffer(), path)
    plt.close(figure)


@dataclass(frozen=True)
class Subject:
    """What a point or a line is about: a trainer, with the settings changed or what is drawn."""

    trainer: str
    changes: str = ""

    @property
    def wrapped(self) -> bool:
        """Whether it is DePT around another method."""
        return is_wrapped(self.trainer)

    @property
    def bare(self) -> Subject:
        """The method that DePT is around; itself if there is no DePT."""
        return Subject(bare_name(self.trainer), self.changes)

    @property
    def label(self) -> str:
        """Its name in a legend; matplotlib hides labels with a _ in front."""
        name = f"{self.trainer} {self.changes}".strip()
        return f" {name}" if name.startswith("_") else name


def _subject(record: Record | Row | Score) -> Subject:
    return Subject(record.trainer, record.config.partition("@")[2])


def _colors(summary: Summary) -> dict[Subject, str]:
    """Return a color per method, the same in every plot; a method and its DePT_ share one."""
    methods = dict.fromkeys(_subject(row) for row in sorted(summary.rows, key=method_order))
    families = list(dict.fromkeys(method.bare for method in methods))
    return {m: COLORS[families.index(m.bare) % len(COLORS)] for m in methods}


COLUMNS = 4  # panels side by side; 1 for a phone


def _grid(
    titles: Sequence[str], most: int, width: float = 2.6, height: float = 2.4
) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure of small panels, at most `most` side by side, and the axes by title."""
    columns = min(len(titles), most)
    rows = -(-len(titles) // columns)
    # A single panel needs the room for its legend too.
    size = (max(columns * width, 3.6), max(rows * height, 3.2))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(titles) :]:
        axis.axis("off")
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=9)
    return figure, dict(zip(titles, axes.flat, strict=False))


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = min(4, max(1, int(figure.get_figwidth() // 1.5)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def _complete(summary: Summary) -> list[Record]:
    """Return the base-to-new records with an H, at the most shots, sweeps left out."""
    records = [r for r in summary.of("base_to_new") if "h" in r.metrics and not is_swept(r.config)]
    most = max((record.shots for record in records), default=0)
    return sorted((r for r in records if r.shots == most), key=method_order)


def base_new_arrows(summary: Summary, columns: int = COLUMNS) -> Figure | None:
    """New against base accuracy, an arrow from each method to itself with DePT; average first."""
    records = _complete(summary)
    if not records:
        return None
    names = sorted(dict.fromkeys(r.dataset for r in records), key=lambda name: name != AVERAGE)
    colors = _colors(summary)
    figure, axes = _grid(names, columns)
    for name, axis in axes.items():
        points = {_subject(r): r for r in records if r.dataset == name}
        for method, record in points.items():
            _point(axis, record, method, colors[method])
        for method, record in points.items():
            if method.wrapped and method.bare in points:
                _arrow(axis, points[method.bare], record, colors[method])
        _equal_h_lines(axis)
        axis.set_xlabel("base accuracy (%)")
        axis.set_ylabel("new accuracy (%)")
    _legend(figure, list(axes.values()))
    return figure


def _point(axis: Axes, record: Record, method: Subject, color: str) -> None:
    base, new = record.metrics["base"], record.metrics["new"]
    axis.errorbar(
        base.mean,
        new.mean,
        xerr=base.std,
        yerr=new.std,
        fmt="o",
        color=color,
        markerfacecolor=color if method.wrapped else "white",
        elinewidth=0.7,
        label=method.label,
    )


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


def dataset_bars(summary: Summary, columns: int = COLUMNS) -> Figure | None:
    """H of every method, data set by data set."""
    records = _complete(summary)
    if not records:
        return None
    methods = list(dict.fromkeys(_subject(r) for r in records))
    names = list(dict.fromkeys(r.dataset for r in records))
    colors = _colors(summary)
    long = 0.22 * len(names) * (len(methods) + 1) + 1.5
    flat = columns == 1  # bars lie where the page is narrow
    figure, axis = plt.subplots(figsize=(3.6, long) if flat else (max(3.6, long), 3.2))
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        mine = {r.dataset: r.metrics["h"] for r in records if _subject(r) == method}
        at = [names.index(name) + (i - (len(methods) - 1) / 2) * width for name in mine]
        heights = [stat.mean for stat in mine.values()]
        spreads = [stat.std or 0 for stat in mine.values()]
        look = {
            "color": colors[method],
            "alpha": 1.0 if method.wrapped else 0.45,
            "error_kw": {"elinewidth": 0.7},
            "label": method.label,
        }
        if flat:
            axis.barh(at, heights, width, xerr=spreads, **look)
        else:
            axis.bar(at, heights, width, yerr=spreads, **look)
    if flat:
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel("H (%)")
    else:
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_ylabel("H (%)")
    axis.grid(axis="y" if flat else "x", visible=False)
    _legend(figure, [axis])
    return figure


def _curves(
    lines: dict[tuple[str, Subject], list[tuple[float, float, float]]],
    xlabel: str,
    ylabel: str,
    colors: dict[Subject, str],
    columns: int,
) -> Figure | None:
    """Draw {(panel, method): [(x, mean, spread), …]} as lines with bands."""
    if not lines:
        return None
    panels = sorted({panel for panel, _ in lines}, key=lambda name: (name != AVERAGE, name))
    figure, axes = _grid(panels, columns)
    for (panel, method), points in lines.items():
        x, mean, spread = np.array(sorted(points)).T
        style = "-" if method.wrapped else "--"
        marker = "o" if len(x) < 15 else None
        axis = axes[panel]
        axis.plot(x, mean, style, marker=marker, ms=3, color=colors[method], label=method.label)
        axis.fill_between(x, mean - spread, mean + spread, color=colors[method], alpha=0.15, lw=0)
    for axis in axes.values():
        axis.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, list(axes.values()))
    return figure


def learning_curves(summary: Summary, columns: int = COLUMNS) -> Figure | None:
    """Mean training loss per epoch over seeds, per data set and method, most shots."""
    epochs: dict[tuple[str, Subject], dict[int, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    most = max((score.shots for score in summary.scores), default=0)
    for score in sorted(summary.scores, key=method_order):
        if is_swept(score.config):
            continue
        path = score.folder / "metrics.jsonl"
        if score.shots == most and score.classes == "base" and path.exists():
            for epoch, loss in _losses(path):
                epochs[score.dataset, _subject(score)][epoch].append(loss)
    lines = {
        key: [(epoch, float(np.mean(v)), float(np.std(v))) for epoch, v in by_epoch.items()]
        for key, by_epoch in epochs.items()
    }
    return _curves(lines, "epoch", "training loss", _colors(summary), columns)


def _losses(path: Path) -> list[tuple[int, float]]:
    """Return (epoch, training loss) of a run; of one whose file is damaged nothing, said so."""
    try:
        lines = read_json_lines(path)
        for line in lines:
            check_kind(line.get("epoch"), int, f"{path}: the number of an epoch")
            check_kind(line.get("loss"), (int, float), f"{path}: a loss")
    except UserError as error:
        print(f"no learning curve of a run: {error}", file=sys.stderr)
        return []
    return [(line["epoch"], float(line["loss"])) for line in lines]


def few_shot_curves(summary: Summary, columns: int = COLUMNS) -> Figure | None:
    """H, or the accuracy on all classes, over the number of shots."""
    figures = defaultdict(list)
    for protocol, metric in (("base_to_new", "h"), ("all_classes", "accuracy")):
        for r in sorted(summary.of(protocol), key=method_order):
            if metric in r.metrics and not is_swept(r.config):
                panel = f"{r.dataset}: {'H' if metric == 'h' else 'all classes'}"
                stat = r.metrics[metric]
                figures[panel, _subject(r)].append((r.shots, stat.mean, stat.std or 0.0))
    lines = {key: points for key, points in figures.items() if len(points) > 1}
    return _curves(lines, "images per class", "%", _colors(summary), columns)


def lambda_curves(summary: Summary, columns: int = COLUMNS) -> Figure | None:
    """Base, new and H over the weight λ of the CAT loss."""
    lines = defaultdict(list)
    for r in summary.of("lambda"):
        for metric, stat in r.metrics.items():
            point = (float(r.dataset), stat.mean, stat.std or 0.0)
            lines[r.source, Subject(r.trainer, metric)].append(point)
    colors = dict(zip(dict.fromkeys(name for _, name in lines), COLORS, strict=False))
    return _curves(dict(lines), "λ", "%", colors, columns)


def class_gains(summary: Summary, columns: int = COLUMNS) -> Figure | None:
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
    tallest = max(map(len, panels.values()))
    figure, axes = _grid(list(panels), columns, width=3.2, height=0.9 + 0.16 * min(tallest, 40))
    for title, gains in panels.items():
        names, values = list(gains), list(gains.values())
        if len(names) > 40:  # the ends tell the story
            names, values = names[:20] + names[-20:], values[:20] + values[-20:]
        signs = [COLORS[0] if value >= 0 else COLORS[1] for value in values]
        axes[title].barh(range(len(names)), values, color=signs)
        axes[title].set_yticks(range(len(names)), names, fontsize=6)
        axes[title].axvline(0, color="black", lw=0.6)
        axes[title].set_xlabel("gain (points)")
    return figure


PLOTS: dict[str, tuple[str, Callable[[Summary, int], Figure | None]]] = {
    "base_new": ("Base against new", base_new_arrows),
    "datasets": ("H per data set", dataset_bars),
    "curves": ("Learning curves", learning_curves),
    "few_shot": ("Few-shot learning", few_shot_curves),
    "lambda": ("Weight of the CAT loss (λ)", lambda_curves),
    "classes": ("Gain of DePT per class", class_gains),
}


def save_all(summary: Summary, folder: str | os.PathLike) -> list[Path]:
    """Write every plot that can be drawn as PNG and PDF; return the files."""
    files = []
    for name, (_, draw) in PLOTS.items():
        if (figure := draw(summary, COLUMNS)) is not None:
            paths = [Path(folder) / f"{name}.{kind}" for kind in ("png", "pdf")]
            save(figure, *paths)
            files += paths
    return files

"""Pictures of what scripts/analyze.py found out, drawn from its tables."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from dassl.utils import UserError, printable
from experiments.results.pictures import COLORS, Panel, Picture, apart

CHANNELS, EMBEDDING = "channel_importance.csv", "embedding.csv"
NAMED = 50  # classes with their names on a map, at most
Channels = Mapping[str, tuple[np.ndarray, np.ndarray]]  # by run: (D,) importance of base, of new


def sorted_channels(runs: Channels) -> Picture:
    """Importance of base and new classes per channel, a panel per run, as in the paper."""
    panels = [
        Panel(name, partial(_sorted, base=base, new=new), _means(base, new), size=(2.8, 2.8))
        for name, (base, new) in runs.items()
    ]
    return Picture("Channel importance", panels)


def _sorted(axis: Axes, base: np.ndarray, new: np.ndarray) -> None:
    order = np.argsort(base)
    axis.plot(base[order], ".", ms=3, color=COLORS[0], label="base")
    axis.plot(new[order], ".", ms=3, color=COLORS[1], label="new")
    axis.set(xlabel="channel, sorted by base CI", ylabel="channel importance")


def ratio(base: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return base importance by new one."""
    return base / np.maximum(new, 1e-12)


def _means(base: np.ndarray, new: np.ndarray) -> str:
    above = 100 * np.mean(base > new)
    return (
        f"Mean channel importance {base.mean():.3f} on base classes, {new.mean():.3f} on new ones; "
        f"higher on base classes in {above:.0f} % of {len(base)} channels."
    )


def ratio_density(runs: Channels) -> Picture:
    """Density of the ratio of base to new importance, runs in one panel.

    Raises UserError for a run whose ratio is the same everywhere: it has no density.
    """
    from scipy.stats import gaussian_kde

    ratios = {name: ratio(base, new) for name, (base, new) in runs.items()}
    end = max(np.percentile(values, 99) for values in ratios.values())
    x = np.linspace(0, end, 400)
    densities = {}
    for name, values in ratios.items():
        if np.ptp(values) == 0:
            raise UserError(f"{name}: base and new importance are in the same ratio everywhere")
        densities[name] = gaussian_kde(values[values <= end])(x)
    told = "; ".join(f"{name} {np.median(values):.2f}" for name, values in ratios.items())
    says = f"Median ratio of base to new importance: {told}."
    draw = partial(_densities, x=x, densities=densities)
    panel = Panel("base : new importance", draw, says, size=(4.5, 3.2))
    return Picture("Channel importance: ratio", [panel])


def _densities(axis: Axes, x: np.ndarray, densities: Mapping[str, np.ndarray]) -> None:
    for i, (name, density) in enumerate(densities.items()):
        axis.fill_between(x, density, alpha=0.4, color=COLORS[i % len(COLORS)], label=name)
    axis.set(xlabel="CI base : CI new", ylabel="density")


def embedding_map(kinds: Sequence[str], classes: Sequence[str], xy: np.ndarray) -> Picture:
    """A t-SNE map (n, 2) of images and class texts; the texts say the order of the classes."""
    images = np.array([kind == "image" for kind in kinds])
    names = [name for name, is_image in zip(classes, images, strict=True) if not is_image]
    labels = np.array([names.index(c) for c, i in zip(classes, images, strict=True) if i], int)
    draw = partial(_map, images=xy[images], labels=labels, texts=xy[~images], names=names)
    says = f"{len(labels)} images and the texts of {len(names)} classes"
    if len(labels) > 1:
        same = 100 * np.mean(labels[_nearest(xy[images])] == labels)
        says += f"; for {same:.0f} % of the images the nearest other one is of their class"
    panel = Panel("dots: images, stars: class texts", draw, f"{says}.", size=(6, 6))
    return Picture("t-SNE of features", [panel])


def _nearest(points: np.ndarray) -> np.ndarray:
    """Return the index (n,) of each point's nearest other."""
    squares = (points**2).sum(axis=1)
    distance = squares[:, None] + squares - 2 * points @ points.T
    np.fill_diagonal(distance, np.inf)
    return distance.argmin(axis=1)


def _map(
    axis: Axes, images: np.ndarray, labels: np.ndarray, texts: np.ndarray, names: Sequence[str]
) -> None:
    # Its ends can't be seen on a dark page.
    colors = colormaps["turbo"](np.linspace(0.12, 0.88, len(names)))
    axis.scatter(*images.T, s=8, c=colors[labels], alpha=0.8, lw=0)
    axis.scatter(*texts.T, s=70, c=colors, marker="*", edgecolors="black", lw=0.5)
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    if len(names) <= NAMED:
        apart(axis, texts, names)


# --- From the tables ----------------------------------------------------------------------------


def analyses(folder: str | os.PathLike) -> Iterator[tuple[str, Picture]]:
    """Return pictures of the analyses below a folder, by kind; of a damaged one a line is told."""
    found: dict[str, list[Path]] = {CHANNELS: [], EMBEDDING: []}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in found.keys() & set(files):
            found[name].append(Path(parent, name))
    for name, read in _READERS.items():
        for path in found[name]:
            try:
                for picture in read(path):
                    shown = printable(os.path.relpath(path.parent, folder))
                    yield name, replace(picture, note=f"From {shown}/{name}.")
            except UserError as error:
                print(f"no picture of an analysis: {error}", file=sys.stderr)


def _rows(path: Path, numbers: Sequence[str], words: Sequence[str]) -> list[dict[str, str]]:
    """Return a table's rows. Raises UserError if a column is missing or a number is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if not all(np.isfinite(float(row[name])) for name in numbers):
                raise ValueError("a number is infinite or none")
            for name in words:
                row[name] = printable(row[name])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} is no table of scripts/analyze.py: {error}") from error
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def _read_channels(path: Path) -> Iterator[Picture]:
    rows = _rows(path, ("base", "new"), ("run",))
    runs = {
        run: (
            np.array([float(row["base"]) for row in rows if row["run"] == run]),
            np.array([float(row["new"]) for row in rows if row["run"] == run]),
        )
        for run in dict.fromkeys(row["run"] for row in rows)
    }
    yield sorted_channels(runs)
    yield ratio_density(runs)


def _read_embedding(path: Path) -> Iterator[Picture]:
    rows = _rows(path, ("x", "y"), ("kind", "class"))
    xy = np.array([(float(row["x"]), float(row["y"])) for row in rows])
    kinds, classes = ([row[key] for row in rows] for key in ("kind", "class"))
    texts = {c for k, c in zip(kinds, classes, strict=True) if k == "text"}
    if not texts >= set(classes):
        raise UserError(f"{path}: a class of its images has no text")
    yield embedding_map(kinds, classes, xy)


_READERS: dict[str, Callable[[Path], Iterator[Picture]]] = {
    CHANNELS: _read_channels,
    EMBEDDING: _read_embedding,
}

"""What pictures are made of: panels that stand together in a file, or apart on the report's page.

A panel draws itself on axes, and says in a sentence what is seen there. Beside matplotlib's PNG,
PDF and SVG files there is SVG to stand in a page: it takes the page's colors, dark or light.
"""

from __future__ import annotations

import io
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dassl.utils import UserError, write_bytes

# Okabe and Ito's colors, distinguishable without color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # of the methods whose color others have too
COLUMNS = 4  # panels side by side in a file
DARK, LIGHT = "#0d1117", "#e6edf3"  # paper and ink of a dark page
CLOUD = 100  # dots
LONGEST = 28  # letters of a name at an axis
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


def on_dark() -> AbstractContextManager[None]:
    """What is drawn within is for a dark page."""
    grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return plt.rc_context({**dict.fromkeys(grounds, DARK), **dict.fromkeys(inks, LIGHT)})


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


def shortened(name: str, most: int = LONGEST) -> str:
    """Return a name of at most `most` letters; of a longer one its two ends."""
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    `draw` draws on them, `aside` adds labels beside them where the panel stands alone, `says` is
    the text for those who don't see it, `size` is in inches.
    """

    title: str
    draw: Callable[[Axes], None]
    says: str
    size: tuple[float, float] = (2.6, 2.4)
    aside: Callable[[Axes], None] | None = None


@dataclass(frozen=True)
class Part:
    """A panel on a page; a `wide` one has labels beside its axes."""

    title: str
    svg: str
    wide: bool


@dataclass(frozen=True)
class Picture:
    """Panels that belong together; `lead` is the sentence above them, `note` what is left out."""

    title: str
    panels: list[Panel]
    legend: bool = True
    lead: str = ""
    note: str = ""
    handles: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def figure(self, columns: int = COLUMNS) -> Figure:
        """Return all panels in one figure, at most `columns` side by side, the legend beneath."""
        columns = min(len(self.panels), columns)
        rows = -(-len(self.panels) // columns)
        width, height = (max(p.size[i] for p in self.panels) for i in (0, 1))
        # A single panel needs the room for its legend too.
        size = (max(columns * width, 3.6), max(rows * height, 3.2))
        figure = Figure(figsize=size)
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(self.panels) :]:
            axis.axis("off")
        for axis, panel in zip(axes.flat, self.panels, strict=False):
            axis.set_title(_wrapped(panel.title, width), fontsize=9)
            panel.draw(axis)
            self._note_handles(axis)
        if self.legend and self.handles:
            longest = max(map(len, self.handles))
            fitting = int(figure.get_figwidth() // (0.075 * longest + 0.45))
            figure.legend(
                self.handles.values(),
                self.handles.keys(),
                loc="outside lower center",
                ncols=max(1, min(4, fitting)),
            )
        return figure

    def parts(self, prefix: str) -> Iterator[Part]:
        """Return each panel as SVG for a page; `prefix` keeps its ids apart from others'."""
        for i, panel in enumerate(self.panels):
            width, height = max(panel.size[0], 3.6), max(panel.size[1], 2.9)
            figure = Figure(figsize=(width + 1.5 * bool(panel.aside), height))
            axis = figure.subplots()
            panel.draw(axis)
            if panel.aside:
                panel.aside(axis)
            for dots in (*axis.lines, *axis.collections):
                dots.set_rasterized(_is_cloud(dots))
            self._note_handles(axis)
            svg = inline(figure, f"{prefix}-{i}", panel.says)
            yield Part(panel.title, svg, panel.aside is not None)

    def keys(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Return (SVG, label) of the legend's entries; after `parts`, which tells them."""
        for i, (label, handle) in enumerate(self.handles.items() if self.legend else ()):
            figure = Figure(figsize=(0.4, 0.2), layout="none")
            figure.legend([handle], [""], loc="center", borderpad=0, handletextpad=0)
            yield inline(figure, f"{prefix}-key{i}", ""), label

    def _note_handles(self, axis: Axes) -> None:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            self.handles.setdefault(label, handle)


def _is_cloud(artist: Artist) -> bool:
    """Whether it is so many dots that a picture of them is smaller than they are."""
    if isinstance(artist, Line2D):
        return artist.get_linestyle() == "None" and len(artist.get_xdata()) > CLOUD
    return isinstance(artist, PathCollection) and len(artist.get_offsets()) > CLOUD


def _wrapped(title: str, width: float) -> str:
    letters = max(12, int(width / 0.085))
    return "\n".join(textwrap.wrap(title, letters, drop_whitespace=False)) or title


def beside(axis: Axes, labels: dict[str, tuple[float, str]]) -> None:
    """Write labels right of the axes at their heights {label: (y, color)}, none over another.

    Thin lines lead from the edge of the axes to those that had to give way.
    """
    low, high = axis.get_ylim()
    at = {label: (y - low) / (high - low) for label, (y, _) in labels.items()}
    step = 0.12 / axis.figure.get_figheight()
    places = spread(list(at.values()), step)
    for (label, start), end in zip(at.items(), places, strict=True):
        axis.annotate(
            shortened(label, 22),
            xy=(1.0, start),
            xytext=(1.06, end),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=7,
            color=labels[label][1],
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#999999", "shrinkB": 0},
        )


def spread(places: list[float], step: float) -> list[float]:
    """Return places as near as that goes to the given ones, no two nearer than `step`.

    Neighbors that are too near form a group around their common middle.
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    groups: list[tuple[float, list[int]]] = []  # middle, members from below
    for i in order:
        middle, members = places[i], [i]
        while groups:
            other, others = groups[-1]
            if middle - other >= step * (len(members) + len(others)) / 2:
                break
            groups.pop()
            members = others + members
            middle = sum(places[m] for m in members) / len(members)
        groups.append((middle, members))
    found = list(places)
    for middle, members in groups:
        for k, i in enumerate(members):
            found[i] = middle + step * (k - (len(members) - 1) / 2)
    return found


def apart(axis: Axes, xy: np.ndarray, names: Sequence[str], size: float = 7) -> None:
    """Write names at points (n, 2), each at the side where it hides least of those before it."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    places = (xy - low) / np.maximum(high - low, 1e-12)
    inches = np.array(axis.figure.get_size_inches()) * 0.8  # about what the axes take of it
    taken: list[np.ndarray] = []  # left, bottom, right, top, as parts of the axes
    for (x, y), point, name in zip(places, xy, map(shortened, names), strict=True):
        wide, tall = np.array([0.6 * size * len(name), 1.2 * size]) / 72 / inches
        best = min(_sides(x, y, wide, tall), key=lambda side: _hidden(side[0], taken))
        taken.append(best[0])
        axis.annotate(
            name,
            point,
            xytext=best[1],
            textcoords="offset points",
            fontsize=size,
            ha=best[2],
            va=best[3],
        )


Side = tuple[np.ndarray, tuple[int, int], str, str]  # box, offset in points, alignments


def _sides(x: float, y: float, wide: float, tall: float) -> Iterator[Side]:
    """Return where a name may stand around a point, the places liked most first."""
    for far in (5, 14, 24):
        gap = far / 250  # points as part of axes
        for across, up in ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            left = x + across * gap - wide * (1 - across) / 2
            bottom = y + up * gap - tall * (1 - up) / 2
            box = np.array([left, bottom, left + wide, bottom + tall])
            at = {-1: "right", 0: "center", 1: "left"}[across]
            yield box, (far * across, far * up), at, {-1: "top", 0: "center", 1: "bottom"}[up]


def _hidden(box: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """Return how much of other boxes, and of the outside of the axes, a box covers."""
    outside = np.maximum(0, -box[:2]).sum() + np.maximum(0, box[2:] - 1).sum()
    over = 0.0
    for other in others:
        sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
        over += float(np.prod(np.maximum(sides, 0)))
    return over + float(outside) ** 2


# --- SVG in a page ------------------------------------------------------------------------------

_DIGITS = re.compile(r"(\.\d\d)\d+")
_BLANKS = re.compile(r"\s+")
_FONT = re.compile(r"font: ([\d.]+px) [^;]*")
_XLINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline(figure: Figure, prefix: str, says: str) -> str:
    """Return a figure as an SVG element for HTML, that has the colors of the page around it.

    Black is the page's ink, white its paper; ids begin with `prefix`. `says` is what those hear
    who don't see it; "" hides it from them.
    """
    out = io.BytesIO()
    figure.savefig(out, format="svg", dpi=200, transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(out.getvalue())
    _tidy(root, _referenced(root), prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    _, _, width, height = root.attrib["viewBox"].split()
    root.set("style", f"aspect-ratio:{float(width):.0f}/{float(height):.0f}")
    root.attrib |= {"role": "img", "aria-label": says} if says else {"aria-hidden": "true"}
    return ElementTree.tostring(root, encoding="unicode")


def _referenced(root: ElementTree.Element) -> set[str]:
    found: set[str] = set()
    for element in root.iter():
        found.add(element.get(_XLINK, "").removeprefix("#"))
        for value in element.attrib.values():
            found.update(_REFERENCE.findall(value))
    return found


def _tidy(root: ElementTree.Element, referenced: set[str], prefix: str) -> None:
    """Make what matplotlib wrote small and the page's own: no names of XML, no ids unasked for."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.text, element.tail = (
            None if text is None or text.isspace() else text
            for text in (element.text, element.tail)
        )
        element.tag = element.tag.partition("}")[2] or element.tag
        if link := element.attrib.pop(_XLINK, None):
            element.set("href", f"#{prefix}-{link[1:]}" if link.startswith("#") else link)
        if (name := element.attrib.pop("id", None)) in referenced:
            element.set("id", f"{prefix}-{name}")
        for key, value in element.attrib.items():
            if key not in ("id", "href"):
                value = _own_colors(_REFERENCE.sub(rf"url(#{prefix}-\1)", value))
                element.set(key, _short(value) if key == "d" else value)


def _own_colors(value: str) -> str:
    value = value.replace("#000000", "currentColor").replace("#ffffff", "var(--page, #fff)")
    return _DIGITS.sub(r"\1", _FONT.sub(r"font-size: \1", value))


def _short(path: str) -> str:
    """Return a path's data without what can be told from the rest: lines go on as lines."""
    letters, last = [], ""
    for word in _BLANKS.sub(" ", path.strip()).split(" "):
        if word != last or word != "L":
            letters.append(word)
        if word.isalpha():
            last = word
    return " ".join(letters)

"""The report: one self-contained HTML page of tables, pictures and links to the runs.

It loads nothing from anywhere, which its content security policy makes sure of. Its script sorts
tables; without it all is there but that.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from dassl.utils import atomic_write
from experiments.results.all_tables import make_tables
from experiments.results.analyses import analyses
from experiments.results.grids import BEST, grid
from experiments.results.left_out import left_out
from experiments.results.pictures import Picture
from experiments.results.plots import every_plot
from experiments.results.scores import Score
from experiments.results.summary import Summary
from experiments.results.tables import TITLES, USUAL, Layout, Table, method_order, runs_table

TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    summary: Summary,
    path: str | os.PathLike,
    layout: Layout = USUAL,
    folder: str | os.PathLike | None = None,
) -> None:
    """Write the page; `folder` is where analyses are looked for, if anywhere.

    Raises OSError if it can't be written.
    """
    drawn = [
        *((name, made) for name, draw in every_plot(summary).items() if (made := draw(summary))),
        *(analyses(folder) if folder is not None else ()),
    ]
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        keep_trailing_newline=True,
    )
    script = TEMPLATE.with_suffix(".js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(TEMPLATE.name).render(
        summary=summary,
        datasets=len({score.dataset for score in summary.scores}),
        seeds=sorted({score.seed for score in summary.scores}),
        tables=[_table(t) for t in [*make_tables(summary, layout), runs_table(summary)]],
        plots=[_plot(f"picture-{i}", picture) for i, (_, picture) in enumerate(drawn, start=1)],
        left_out=left_out(summary, {name for name, _ in drawn}, folder),
        runs=_runs(summary, Path(path)),
        script=script,
        digest=f"sha256-{digest}",
        written=f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M}",
    )
    with atomic_write(path) as file:
        file.write(page)


def _table(table: Table) -> dict[str, Any]:
    """Return what the template shows: a group for each first key where lines are grouped."""
    head, *rows = grid(table)
    first = 1 if table.grouped else 0
    keys = len(table.heads) - first
    groups: list[dict[str, Any]] = []
    for row in rows:
        name = row.cells[0] if table.grouped else None
        if not groups or (row.kind == "ours" and name != groups[-1]["name"]):
            groups.append({"name": name, "rows": []})
        shown = {"beneath": row.beneath, "cells": _cells(row.cells, keys + first, row.best)[first:]}
        groups[-1]["rows"].append(shown)
    return {
        "title": table.title,
        "grouped": table.grouped,
        "head": _cells(head.cells, keys + first)[first:],
        "groups": groups,
        "notes": [*([f"Bold: {BEST}"] if table.ranked else []), *table.footnotes],
    }


def _cells(row: list[str], keys: int, best: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
    """Return cells with the spread apart: in small print, three columns fit a phone."""
    cells = []
    for i, text in enumerate(row):
        mean, _, std = text.partition(" ± ")
        cells.append({"key": i < keys, "mean": mean, "std": std, "best": i in best})
    return cells


def _plot(name: str, picture: Picture) -> dict[str, Any]:
    """Return a plot as panels that the page arranges, with their legend."""
    parts = list(picture.parts(name))
    shown = {key: getattr(picture, key) for key in ("title", "lead", "note")}
    return {"name": name, "parts": parts, "legend": list(picture.keys(name)), **shown}


def _runs(summary: Summary, page: Path) -> list[dict[str, Any]]:
    """Return the runs with links to their folders and files, as seen from the page."""
    runs = []
    for score in sorted(
        summary.scores, key=lambda s: (s.dataset, s.classes, method_order(s), s.seed)
    ):
        title = TITLES.get(score.protocol, score.protocol)
        numbers = [score.shots, score.seed, f"{score.accuracy:.2f}"]
        words = [score.dataset, score.classes, score.trainer, score.config, title]
        runs.append({"words": words, "numbers": numbers, "links": _links(score, page)})
    return runs


def _links(score: Score, page: Path) -> list[tuple[str, str]]:
    logs = sorted(path.name for path in score.folder.glob("log.txt*"))
    there = [name for name in (*logs, "result.json") if (score.folder / name).is_file()]
    return [("folder", _link(score.folder, page) + "/")] + [
        (name, _link(score.folder / name, page)) for name in there
    ]


def _link(path: Path, page: Path) -> str:
    """Return a link from the page, relative: it holds when both are moved together."""
    relative = os.path.relpath(path, page.parent)
    return quote(os.fsencode(relative.replace(os.sep, "/")))

"""The report: one self-contained HTML page of tables and plots, without scripts."""

from __future__ import annotations

import base64
import datetime
import io
import os
from pathlib import Path
from typing import Any

import jinja2
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dassl.utils import atomic_write
from experiments.results.plots import COLUMNS, PLOTS
from experiments.results.rendering import grid
from experiments.results.summary import Summary
from experiments.results.tables import USUAL, Layout, Table, make_tables

TEMPLATE = Path(__file__).with_name("report.html")


def write_report(summary: Summary, path: str | os.PathLike, layout: Layout = USUAL) -> None:
    """Write the page. Raises OSError if it can't be written."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        keep_trailing_newline=True,
    )
    page = environment.get_template(TEMPLATE.name).render(
        summary=summary,
        datasets=len({score.dataset for score in summary.scores}),
        seeds=sorted({score.seed for score in summary.scores}),
        tables=[_table(table) for table in make_tables(summary, layout)],
        plots=[plot for name in PLOTS if (plot := _plot(summary, name))],
        written=f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M}",
    )
    with atomic_write(path) as file:
        file.write(page)


def _table(table: Table) -> dict[str, Any]:
    """Return what the template shows; where lines are grouped, the first key heads its group."""
    head, *rows = grid(table)
    first = 1 if table.grouped else 0
    keys = len(table.heads) - first
    shown, group = [], ""
    for row in rows:
        begins = table.grouped and row.kind == "ours" and row.cells[0] != group
        group = row.cells[0] if begins else group
        shown.append(
            {
                "group": group if begins else None,
                "beneath": row.beneath,
                "cells": _cells(row.cells[first:], keys),
            }
        )
    top = _cells(head.cells[first:], keys)
    return {"title": table.title, "head": top, "rows": shown, "notes": table.footnotes}


def _cells(row: list[str], keys: int) -> list[dict[str, Any]]:
    """Return cells with the spread apart: in small print, three columns fit a phone."""
    cells = []
    for i, text in enumerate(row):
        mean, _, std = text.partition(" ± ")
        cells.append({"key": i < keys, "mean": mean, "std": std})
    return cells


def _plot(summary: Summary, name: str) -> dict[str, str] | None:
    """Return a plot in two widths; the page's reader takes the one that fits."""
    title, draw = PLOTS[name]
    wide, narrow = draw(summary, COLUMNS), draw(summary, 1)
    if wide is None or narrow is None:
        return None
    return {"title": title, "wide": _svg(wide), "narrow": _svg(narrow)}


def _svg(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()

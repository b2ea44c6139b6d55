"""The report: one self-contained HTML page of tables and plots, without scripts."""

from __future__ import annotations

import base64
import datetime
import html
import io
import os

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dassl.utils import atomic_write
from experiments.results.plots import COLUMNS, PLOTS
from experiments.results.summary import Summary
from experiments.results.tables import Table, grid, make_tables

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 72rem; padding: 0 1rem 2rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
small { color: #595959; font-size: .8em; padding-left: .15em; }
p.note, footer { color: #595959; font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th.key, td.key { text-align: left; }
thead th { border-bottom: 2px solid #1a1a1a; }
tr.group th { text-align: left; padding-top: .75rem; border-bottom: 1px solid #ccc; }
tr.paper td { color: #595959; }
img { display: block; max-width: 100%; height: auto; }
@media (max-width: 640px) { table { font-size: .75rem; } th, td { padding: .2rem; } }
li { overflow-wrap: anywhere; font-size: .875rem; }
"""
NARROW = "(max-width: 640px)"


def write_report(summary: Summary, path: str | os.PathLike) -> None:
    """Write the page. Raises OSError if it can't be written."""
    tables = make_tables(summary)
    plots = [_plot(summary, name) for name in PLOTS]
    seeds = sorted({score.seed for score in summary.scores})
    datasets = {score.dataset for score in summary.scores}
    now = datetime.datetime.now(datetime.timezone.utc)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Results</title><style>{STYLE}</style></head><body>",
        "<h1>Results</h1>",
        f'<p class="note">{len(summary.scores)} results on {len(datasets)} data sets, seeds '
        f"{', '.join(map(str, seeds))}. Accuracy in percent: mean ± standard deviation over seeds "
        "(n − 1). H = 2BN/(B+N), on average rows of the averaged accuracies. The paper's numbers, "
        "where there are any, stand beneath ours.</p>",
        _list("Refused", summary.refused),
        *(_table(table) for table in tables),
        *filter(None, plots),
        _list("Note", [note] if (note := summary.note_on_unidentified) else []),
        _list("Missing", summary.missing),
        f"<footer>Written {now:%Y-%m-%d %H:%M} UTC by scripts/parse_results.py.</footer>",
        "</body></html>\n",
    ]
    with atomic_write(path) as file:
        file.write("\n".join(filter(None, parts)))


def _list(title: str, lines: list[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<h2>{title}</h2><ul>{items}</ul>" if lines else ""


def _table(table: Table) -> str:
    """Return a table; where lines are grouped, the first key is a heading across it."""
    head, *rows = grid(table)
    first = 1 if table.grouped else 0
    keys = len(table.heads) - first
    body, group = [], ""
    for row in rows:
        if table.grouped and row[0] and row[0] != group:
            group = row[0]
            span = len(row) - first
            body.append(f"<tr class=group><th colspan={span}>{html.escape(group)}</th></tr>")
        # The lines of the paper's numbers and the gaps have no key in front.
        kind = " class=paper" if row[len(table.heads) - 1].startswith("  ") else ""
        body.append(f"<tr{kind}>{_cells(row[first:], keys, 'td')}</tr>")
    return (
        f'<h2>{html.escape(table.title)}</h2><div class="scroll"><table>'
        f"<thead><tr>{_cells(head[first:], keys, 'th')}</tr></thead><tbody>{''.join(body)}</tbody>"
        "</table></div>"
    )


def _cells(row: list[str], keys: int, tag: str) -> str:
    cells = []
    for i, text in enumerate(row):
        mean, sign, std = html.escape(text.strip()).partition(" ± ")
        small = f"<small>±{std}</small>" if sign else ""  # three columns fit a phone
        cells.append(f"<{tag}{' class=key' if i < keys else ''}>{mean}{small}</{tag}>")
    return "".join(cells)


def _plot(summary: Summary, name: str) -> str:
    """Return a plot in two widths; the page's reader takes the one that fits."""
    title, draw = PLOTS[name]
    wide, narrow = draw(summary, COLUMNS), draw(summary, 1)
    if wide is None or narrow is None:
        return ""
    return (
        f'<h2>{html.escape(title)}</h2><picture><source media="{NARROW}" srcset="{_svg(narrow)}">'
        f'<img alt="{html.escape(title)}" src="{_svg(wide)}"></picture>'
    )


def _svg(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()

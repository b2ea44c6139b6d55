"""Tables as LaTeX that compiles as it stands, in a document that loads booktabs."""

from __future__ import annotations

import re

from experiments.results.grids import BEST, GridRow, grid, indented, number
from experiments.results.records import Stat
from experiments.results.tables import Table

NEEDS = r"% In the preamble: \usepackage{booktabs}"
# Compilers that take all letters of Unicode.
BEYOND_LATIN = "% Some letters are not Latin: to be compiled by XeLaTeX or LuaLaTeX."

_ESCAPED = str.maketrans(
    {
        **{c: rf"\{c}" for c in "_%&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # A row may begin with these, and \\ takes them for its own.
        "[": "{[}",
        "*": "{*}",
        "@": "{@}",
        "λ": r"$\lambda$",
        "τ": r"$\tau$",
        "±": r"$\pm$",
        "−": "$-$",
        "…": r"\dots{}",
        "–": "--",
        "’": "'",
    }
)


def escaped(text: str) -> str:
    """Return text that LaTeX shows as it is."""
    return text.translate(_ESCAPED)


def latex_number(stat: Stat | None) -> str:
    """Return a number with its spread in small print."""
    mean, sign, std = number(stat).partition(" ± ")
    return rf"{mean}{{\scriptsize$\,\pm\,${std}}}" if sign else escaped(mean)


def as_latex(tables: list[Table]) -> str:
    """Return booktabs tables, one float each."""
    labels: dict[str, int] = {}
    blocks = [_float(table, labels) for table in tables]
    text = "\n\n".join(blocks)
    beyond = any(ord(letter) > 0x24F for letter in text)
    return "\n".join([NEEDS, *([BEYOND_LATIN] if beyond else []), "", text])


def _float(table: Table, labels: dict[str, int]) -> str:
    keys = len(table.heads)
    rows = [_row(table, row, keys) for row in grid(table, latex_number)]
    caption = f"{table.title}. Accuracy in percent: mean, standard deviation over seeds."
    notes = [*([f"Bold: {BEST}"] if table.ranked else []), *table.footnotes]
    caption += "".join(f" {note[0].upper()}{note[1:]}." for note in notes)
    align = "l" * keys + "r" * (len(table.columns) + 1)
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{{_label(table.title, labels)}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _row(table: Table, row: GridRow, keys: int) -> str:
    cells = indented(table, row)
    shown = [escaped(cell) for cell in cells[:keys]]
    for i, cell in enumerate(cells[keys:], start=keys):
        if row.kind != "ours" or i == len(cells) - 1:  # the seeds
            shown.append(escaped(cell))
        else:
            shown.append(rf"\textbf{{{cell}}}" if i in row.best else cell)
    return " & ".join(shown) + r" \\"


def _label(title: str, labels: dict[str, int]) -> str:
    """Return "tab:base-to-new-16-shots", with a number where there was one of that name."""
    words = re.findall(r"[a-z0-9]+", title.replace("λ", "lambda").lower())
    name = "tab:" + "-".join(words)
    labels[name] = labels.get(name, 0) + 1
    return name if labels[name] == 1 else f"{name}-{labels[name]}"

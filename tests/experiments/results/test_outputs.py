"""Names that mean something to LaTeX, spreadsheets, Markdown, matplotlib are shown as they are."""

from __future__ import annotations

import csv
import json
import os

import pytest

from experiments.results.pictures import save
from experiments.results.plots import base_new_arrows
from experiments.results.rendering import FORMATS
from experiments.results.report import write_report
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from tests.experiments.fake_runs import add_pair

NAMES = [
    "=1+1",
    "@SUM(A1)",
    "-x",
    "_a_$b$_%&#{}~^",
    "a|b*c",
    '<b>&"',
    "  indented",
    os.fsdecode(b"caf\xe9"),
]
SHOWN = {os.fsdecode(b"caf\xe9"): "caf\\udce9"}


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    root = tmp_path_factory.mktemp("output")
    for name in NAMES:
        add_pair(root, name, 80, 70)
    return summarize(load_scores(root)[0])


def test_a_spreadsheet_runs_nothing(summary):
    rows = list(csv.DictReader(FORMATS["csv"](summary).splitlines()))
    cells = {row["dataset"] for row in rows}
    assert {"'=1+1", "'@SUM(A1)", "'-x", "a|b*c", "caf\\udce9"} <= cells
    assert all(row["base"] == "80.0" for row in rows)  # numbers stay numbers


def test_latex(summary):
    text = FORMATS["latex"](summary)
    assert r"\_a\_\$b\$\_\%\&\#\{\}\textasciitilde{}\textasciicircum{}" in text
    assert r"caf\textbackslash{}udce9" in text


def test_markdown(summary):
    text = FORMATS["markdown"](summary)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in rows}) == 1  # columns in every row
    assert r"a\|b\*c" in text


def test_the_report_escapes_names(summary, tmp_path):
    write_report(summary, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<caption>&lt;b&gt;&amp;&#34;</caption>" in text and "<b>" not in text
    # The paper's rows are those with its numbers, not those whose names begin with blanks.
    assert "<caption>  indented</caption>" in text and "class=paper" not in text


def test_names_that_begin_with_blanks_are_rows_of_ours(summary):
    lines = FORMATS["text"](summary).splitlines()
    (line,) = (line for line in lines if line.startswith("  indented"))
    assert line.split() == ["indented", "CoOp", "80.00", "70.00", "74.67", "1"]
    assert lines[lines.index(line) - 1] == ""  # a group of its own


def test_json_and_text(summary):
    names = {record["dataset"] for record in json.loads(FORMATS["json"](summary))["records"]}
    assert {SHOWN.get(name, name) for name in NAMES} <= names
    FORMATS["text"](summary).encode()


def test_pictures(summary, tmp_path):
    figure = base_new_arrows(summary).figure()
    assert {axis.get_title() for axis in figure.axes} >= {SHOWN.get(n, n) for n in NAMES}
    save(figure, tmp_path / "x.png")


def test_an_accuracy_that_is_none_costs_its_own_cell(tmp_path):
    for i, accuracy in enumerate(("NaN", "1e999", "-3", "101", "true", '"80"')):
        folder = tmp_path / f"base2new/train_base/dtd/shots_16/CoOp/vit_b16/seed{i}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(f'{{"accuracy": {accuracy}, "classes": "base"}}')
    add_pair(tmp_path, "eurosat", 80, 70)
    scores, problems = load_scores(tmp_path)
    assert {score.dataset for score in scores} == {"eurosat"}
    assert len(problems) == 6 and all("seed" in line for line in problems)

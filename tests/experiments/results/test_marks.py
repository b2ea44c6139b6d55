"""What methods see, and what others published of them, in the tables."""

from __future__ import annotations

import csv
import io

import pytest

from dassl.utils.cli import escape_markdown
from experiments.results.rendering import FORMATS, as_csv, as_latex, as_markdown, as_text
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from experiments.results.tables import make_tables
from tests.experiments.fake_runs import add_pair


@pytest.fixture
def seeing(tmp_path):
    """Three methods: one sees nothing, one new names, one these and a teacher."""
    sights = {"CoOp": [], "LASP": ["new_class_names"], "KD": ["teacher", "new_class_names"]}
    for trainer, words in sights.items():
        add_pair(tmp_path, "dtd", 80, 60, trainer=trainer, sees=words)
    add_pair(tmp_path, "dtd", 80, 60, trainer="DePT_CoOp", sees=["the_future"])
    return summarize(load_scores(tmp_path)[0])


def test_tables_mark_what_methods_see(seeing):
    lines = as_text(make_tables(seeing)).splitlines()
    names = [line.removeprefix("dtd").strip().split("  ")[0] for line in lines[4:-2]]
    assert [n for n in names if n not in ("paper", "gap")] == [
        *("KD [N,T]", "LASP [N]", "CoOp", "DePT_CoOp"),
    ]
    notes = [
        "[N] sees names of classes that it isn't trained on",
        "[T] sees a second trained model",
    ]
    assert lines[-2:] == notes
    assert as_markdown(make_tables(seeing)).endswith("\n\n".join(map(escape_markdown, notes)))
    assert f"over seeds. {notes[0]}. {notes[1]}.}}" in as_latex(make_tables(seeing))
    rows = list(csv.DictReader(io.StringIO(as_csv(seeing))))
    assert {row["trainer"]: row["sees"] for row in rows} == {
        "CoOp": "",
        "DePT_CoOp": "",
        "KD": "new_class_names teacher",
        "LASP": "new_class_names",
    }


def test_tables_group_by_what_methods_see(seeing):
    tables = make_tables(seeing, by_sees=True)
    assert [table.title for table in tables] == [
        "Base to new, 16 shots; seen: nothing further",
        "Base to new, 16 shots; seen: names of classes that it isn't trained on",
        "Base to new, 16 shots; seen: names of classes that it isn't trained on; a second trained "
        "model",
    ]
    assert [[line.keys[1] for line in table.lines] for table in tables] == [
        ["CoOp", "DePT_CoOp"],
        ["LASP [N]"],
        ["KD [N,T]"],
    ]
    assert FORMATS["text"](seeing, by_sees=True).count("; seen: ") == 3

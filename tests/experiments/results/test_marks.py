"""What methods see, what others published of them, calibration, and both halves, in the tables."""

from __future__ import annotations

import csv
import io

import pytest

from dassl.utils.cli import escape_markdown
from experiments.results import published
from experiments.results.all_tables import make_tables
from experiments.results.grids import BEST
from experiments.results.latex import as_latex, escaped
from experiments.results.rendering import FORMATS, as_csv, as_markdown, as_text
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from experiments.results.tables import Layout
from tests.experiments.fake_runs import add_pair, add_run
from tuning.sees import SEES


@pytest.fixture
def seeing(tmp_path):
    """Three methods: one sees nothing, one new names, one these and a teacher."""
    sights = {"CoOp": [], "Peek": ["new_class_names"], "KD": ["teacher", "new_class_names"]}
    for trainer, words in sights.items():
        add_pair(tmp_path, "dtd", 80, 60, trainer=trainer, sees=words)
    add_pair(tmp_path, "dtd", 80, 60, trainer="DePT_CoOp", sees=["the_future"])
    return summarize(load_scores(tmp_path)[0])


def test_tables_mark_what_methods_see(seeing):
    lines = as_text(make_tables(seeing)).splitlines()
    names = [line.removeprefix("dtd").strip().split("  ")[0] for line in lines[4:-3]]
    assert [n for n in names if n not in ("paper", "gap")] == [
        *("KD [N,T]", "Peek [N]", "CoOp", "DePT_CoOp"),
    ]
    notes = [
        "[N] sees names of classes that it isn't trained on",
        "[T] sees a second trained model",
    ]
    assert lines[-3:] == [f"*: {BEST}", *notes]
    assert as_markdown(make_tables(seeing)).endswith("\n\n".join(map(escape_markdown, notes)))
    assert escaped(f" {notes[0]}. {notes[1]}.") + "}" in as_latex(make_tables(seeing))
    rows = list(csv.DictReader(io.StringIO(as_csv(seeing))))
    assert {row["trainer"]: row["sees"] for row in rows} == {
        "CoOp": "",
        "DePT_CoOp": "",
        "KD": "new_class_names teacher",
        "Peek": "new_class_names",
    }


def test_tables_group_by_what_methods_see(seeing):
    tables = make_tables(seeing, Layout(by_sees=True))
    assert [table.title for table in tables] == [
        "Base to new, 16 shots; seen: nothing further",
        "Base to new, 16 shots; seen: names of classes that it isn't trained on",
        "Base to new, 16 shots; seen: names of classes that it isn't trained on; a second trained "
        "model",
    ]
    assert [[line.keys[1] for line in table.lines] for table in tables] == [
        ["CoOp", "DePT_CoOp"],
        ["Peek [N]"],
        ["KD [N,T]"],
    ]
    assert FORMATS["text"](seeing, Layout(by_sees=True)).count("; seen: ") == 3


# --- The field's numbers ------------------------------------------------------------------------


def test_the_fields_numbers_are_whole():
    """Each row has the eleven data sets and their average; its words are known."""
    eleven = published.datasets("base_to_new")
    rows = {}
    for e in published.elsewhere():
        assert set(e.sees) <= set(SEES) and e.source
        rows.setdefault((e.method, e.source), {})[e.dataset] = e.numbers
    for key, found in rows.items():
        assert set(found) == {*eleven, "average"}, key
        for part in ("base", "new"):
            mean = sum(found[name][part] for name in eleven) / len(eleven)
            slip = key[0] == "DeCaPT" and part == "new"  # printed 75.70
            assert abs(mean - found["average"][part]) < (0.1 if slip else 0.011), (key, part, mean)
    reruns = {e.method for e in published.elsewhere() if e.rerun}
    assert reruns == {"CoPrompt", "PromptSRC", "MaPLe"}


def test_the_fields_numbers_stand_beneath_ours(tmp_path):
    for trainer in ("TCP", "MaPLe"):
        add_pair(tmp_path, "dtd", 80, 60, trainer=trainer)
    add_pair(tmp_path, "dtd", 80, 60, trainer="TCP", shots=4)
    add_pair(tmp_path, "dtd", 80, 60, trainer="TCP", config="tiny@OPTIM.LR=1")
    summary = summarize(load_scores(tmp_path)[0])
    text = as_text(make_tables(summary)).split("\n\n")
    lines = [line.split() for line in text[0].splitlines()]
    assert lines[5][:5] == ["published", "(1)", "82.77", "58.07", "68.25"]
    assert [line[0] for line in lines].count("published") == 1  # as it came, at 16 shots
    rerun = next(line for line in lines if line[0] == "re-run")
    paper = next(line for line in lines if line[0] == "paper")
    assert rerun[1] == "(2)" and rerun[2:] != paper[1:]
    assert text[0].endswith(
        "(1) published: Koorye/SkipTuning examples/base_to_new.png\n(2) re-run: DPC table"
    )
    assert not any("published" in part for part in text[1:])


def test_all_of_the_field_on_request(tmp_path):
    add_pair(tmp_path, "dtd", 80, 60)
    summary = summarize(load_scores(tmp_path)[0])
    assert len(make_tables(summary)) == 1
    *_, table = make_tables(summary, Layout(field=True))
    assert table.title == "Base to new in the field, 16 shots, ViT-B/16"
    assert {line.keys[0] for line in table.lines} == {"average", "dtd"}
    assert len(table.lines) == 2 * len({(e.method, e.source) for e in published.elsewhere()})
    text = FORMATS["text"](summary, Layout(field=True))
    (average, _) = [line for line in text.splitlines() if "PromptKD [N,U,I,T,S]" in line]
    number = 1 + table.sources.index("published: zhengli97/PromptKD images/exp_results.png")
    assert average.split()[-4:] == ["86.96", "80.73", "83.73", f"({number})"]


# --- Both halves together, and calibration ------------------------------------------------------


@pytest.fixture
def together(tmp_path):
    """Two data sets: base to new, and the same models on all classes."""
    for dataset, base, new, seed in (("dtd", 80, 60, 1), ("dtd", 82, 62, 2), ("pets", 90, 70, 1)):
        add_pair(tmp_path, dataset, base, new, seed=seed, ece=base / 10)
        halves = {"base": base - 10, "new": new - 20}
        options = {"halves": halves, "model_classes": "base", "ece": 7.0, "seed": seed}
        add_run(tmp_path, f"base2new/test_all/{dataset}", base - 20, **options)
    # Trained on all classes: another table.
    halves = {"base": 1.0, "new": 2.0}
    add_run(tmp_path, "all_classes/train_all/dtd", 50, halves=halves, model_classes="all")
    return summarize(load_scores(tmp_path)[0])


def test_base_and_new_together(together):
    found = {record.dataset: record.metrics for record in together.of("base_and_new")}
    means = {key: stat.mean for key, stat in found["dtd"].items()}
    h = 2 * 71 * 41 / (71 + 41)
    assert means == pytest.approx({"accuracy": 61, "base": 71, "new": 41, "h": h, "ece": 7})
    assert found["dtd"]["accuracy"].seeds == (1, 2)
    assert {k: s.mean for k, s in found["average"].items() if k != "h"} == pytest.approx(
        {"accuracy": 65.5, "base": 75.5, "new": 45.5, "ece": 7}
    )
    (table,) = [t for t in make_tables(together) if t.title == "Base and new together, 16 shots"]
    assert table.columns == ["accuracy", "base", "new", "h"]
    assert [r.metrics["accuracy"].mean for r in together.of("all_classes")] == [50]


def test_calibration_errors_stand_beside_the_accuracies(together):
    table = make_tables(together, Layout(ece=True))[0]
    assert table.columns == ["base", "new", "h", "ece_base", "ece_new"]
    (line,) = [line for line in table.lines if line.keys[0] == "dtd"]
    assert (line.cells["ece_base"].mean, line.cells["ece_new"].mean) == pytest.approx((8.1, 8.1))
    assert make_tables(together)[0].columns == ["base", "new", "h"]
    rows = list(csv.DictReader(io.StringIO(as_csv(together))))
    (row,) = [r for r in rows if (r["protocol"], r["dataset"]) == ("base_to_new", "pets")]
    assert float(row["ece_new"]) == 9.0 and row["ece"] == ""

"""The best number is marked, among what compares; what methods differ in stands beneath."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from experiments.results.all_tables import make_tables
from experiments.results.grids import BEST
from experiments.results.latex import as_latex
from experiments.results.rendering import Screen, as_markdown, as_text
from experiments.results.report import write_report
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from experiments.results.tables import Layout, Line, Table, runs_table
from tests.experiments.fake_runs import add_pair, add_run, identity


def tables_of(root, **layout):
    return make_tables(summarize(load_scores(root)[0]), Layout(**layout))


def best(table: Table) -> dict[str, set[str]]:
    return {" ".join(line.keys): line.best for line in table.lines if line.best}


# --- The best -----------------------------------------------------------------------------------


def test_the_best_of_each_column_and_all_that_are_printed_alike(tmp_path):
    for trainer, base, new in (("A", 80, 60), ("B", 80.001, 55), ("C", 79, 60.02)):
        add_pair(tmp_path, "dtd", base, new, trainer=trainer)
        add_pair(tmp_path, "pets", base / 2, new, trainer=trainer)
    found = best(tables_of(tmp_path)[0])
    assert found["dtd A"] == {"base", "h"} and found["dtd B"] == {"base"}
    assert found["dtd C"] == {"new"}
    assert found["pets A"] == {"base", "h"}  # each data set has its own


def test_a_calibration_error_is_best_where_it_is_least(tmp_path):
    add_pair(tmp_path, "dtd", 80, 60, trainer="A", ece=3.0)
    add_pair(tmp_path, "dtd", 70, 50, trainer="B", ece=2.0)
    found = best(tables_of(tmp_path, ece=True)[0])
    assert found == {"dtd A": {"base", "new", "h"}, "dtd B": {"ece_base", "ece_new"}}


@pytest.mark.parametrize(
    "other", [{"sees": ["teacher"]}, {"backbone_sha256": "b32"}], ids=["sees more", "backbone"]
)
def test_what_does_not_compare_is_not_ranked(tmp_path, other):
    add_pair(tmp_path, "dtd", 80, 60, trainer="A")
    add_pair(tmp_path, "dtd", 70, 50, trainer="B")
    add_pair(tmp_path, "dtd", 90, 90, trainer="C", **other)
    (table,) = tables_of(tmp_path)
    assert [name.split()[1] for name in best(table)] == ["A"]


def test_averages_over_other_data_sets_are_not_ranked(tmp_path):
    for name in ("dtd", "pets", "zoo"):
        add_pair(tmp_path, name, 80, 60, trainer="A")
    for name in ("dtd", "zoo"):
        add_pair(tmp_path, name, 90, 90, trainer="B")
    (table,) = tables_of(tmp_path)
    assert {name.split()[0] for name in best(table)} == {"dtd", "zoo"}
    assert "the average of B is without pets" in table.notes


def test_rows_tested_on_other_images_are_not_ranked_and_that_is_said(tmp_path):
    for name in ("dtd", "pets"):
        for trainer in ("A", "B", "C"):
            other = {"test": "others"} if (name, trainer) == ("dtd", "C") else {}
            base = 90 if trainer == "C" else 80
            add_pair(tmp_path, name, base, 60, trainer=trainer, identity=identity(other))
    summary = summarize(load_scores(tmp_path)[0])
    found = best(make_tables(summary)[0])
    assert "base" in found["dtd A"] and "base" in found["average B"]
    assert "base" in found["pets C"] and "dtd C" not in found and "average C" not in found
    lines = [line for line in summary.notes if line.startswith("dtd, base classes")]
    assert len(lines) == 1 and lines[0].endswith(
        "otherwise than most: base_to_new: C tiny, 16 shots"
    )
    assert not any(line.startswith("pets") for line in summary.notes)


def test_a_method_alone_is_not_the_best_of_anything(tmp_path):
    add_pair(tmp_path, "dtd", 80, 60)
    (table,) = tables_of(tmp_path)
    assert not table.ranked and BEST not in as_text([table]) + as_latex([table])


def test_every_format_marks_the_best(tmp_path):
    add_pair(tmp_path / "out", "dtd", 80, 60, trainer="A")
    add_pair(tmp_path / "out", "dtd", 70, 50, trainer="B")
    summary = summarize(load_scores(tmp_path / "out")[0])
    tables = make_tables(summary)
    assert "80.00*  60.00*" in as_text(tables) and f"\n*: {BEST}" in as_text(tables)
    assert "70.00   50.00 " in as_text(tables)  # the numbers stay beneath each other
    bold = as_text(tables, Screen(80, bold=True))
    assert "\x1b[1m80.00\x1b[22m" in bold and "*" not in bold
    assert "| **80.00** | **60.00** |" in re.sub(" +", " ", as_markdown(tables))
    assert r"& \textbf{80.00} & \textbf{60.00} &" in as_latex(tables)
    write_report(summary, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<strong>80.00</strong>" in page and "<strong>70.00" not in page and BEST in page


# --- What methods differ in ---------------------------------------------------------------------


def test_backbone_schedule_and_versions_stand_beneath_where_they_differ(tmp_path):
    schedule = {"OPTIM__MAX_EPOCH": 10, "OPTIM__NAME": "sgd", "OPTIM__LR": 0.0035}
    longer = {**schedule, "OPTIM__MAX_EPOCH": 50, "DATALOADER__TRAIN_X__BATCH_SIZE": 32}
    usual = {"versions": {"dept": "1.0.0", "torch": "2.6.0"}, "backbone": "ViT-B/16"}
    for trainer in ("A", "B", "C"):
        add_pair(tmp_path, "dtd", 80, 60, trainer=trainer, identity=identity(**schedule), **usual)
    (table,) = tables_of(tmp_path)
    assert table.notes == []
    newer = {"versions": {"dept": "1.1.0", "torch": "2.6.0"}, "backbone": "ViT-B/32"}
    add_pair(tmp_path, "dtd", 80, 60, trainer="D", identity=identity(**longer), **newer)
    add_pair(
        tmp_path, "dtd", 60, 60, trainer="Zero", seeded=False, identity=identity(), **usual
    )  # trains nothing: it has no schedule to differ in
    (table,) = tables_of(tmp_path)
    assert table.notes == [
        "backbone: ViT-B/32 (D); ViT-B/16 (the others)",
        "schedule: 50 epochs, batch 32, SGD at 0.0035 (D); 10 epochs, SGD at 0.0035 (the others)",
        "versions: dept 1.1.0, torch 2.6.0 (D); dept 1.0.0, torch 2.6.0 (the others)",
    ]
    summary = summarize(load_scores(tmp_path)[0])
    runs = {line.keys[0]: line.keys[2:5] for line in runs_table(summary).lines}
    assert runs["D"] == [
        "ViT-B/32",
        "50 epochs, batch 32, SGD at 0.0035",
        "dept 1.1.0, torch 2.6.0",
    ]
    assert runs["Zero"][1] == ""
    write_report(summary, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "What was run" in page and "50 epochs, batch 32, SGD at 0.0035" in page


@pytest.mark.parametrize("path", ["/home/me/my clip.pt", "C:\\models\\my clip.pt"])
def test_of_a_backbones_file_its_name_and_hash_are_told(tmp_path, path):
    add_pair(tmp_path, "dtd", 80, 60, backbone=path, backbone_sha256="0123456789abcdef")
    add_pair(tmp_path, "dtd", 80, 60, trainer="B", backbone="ViT-B-16/laion2b")
    (table,) = tables_of(tmp_path)
    assert table.notes == ["backbone: my clip.pt 01234567 (CoOp); ViT-B-16/laion2b (B)"]


# --- A terminal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_line_is_wider_than_the_screen(tmp_path, columns):
    long = "vit_b16_ep10@DATALOADER.TRAIN_X.BATCH_SIZE=4,OPTIM.MAX_EPOCH=50,OPTIM.LR="
    for name in "abcdefgh":
        for rate in ("0.1", "0.2"):
            add_run(tmp_path, f"all_classes/train_all/data_set_{name}", 80, config=long + rate)
        add_pair(tmp_path, f"data_set_{name}", 80, 60, sees=["teacher"])
    tables = tables_of(tmp_path)
    whole, cut = as_text(tables), as_text(tables, Screen(columns))
    assert max(map(len, cut.splitlines())) <= columns < max(map(len, whole.splitlines()))
    assert cut.count("80.00") == whole.count("80.00")
    assert ("continued" in cut) and "continued" not in whole
    for rate in ("0.1", "0.2"):  # shortened, and still two
        assert sum(line.startswith("CoOp vit") and f"LR={rate}" in line for line in cut.split("\n"))


def test_names_that_would_look_alike_are_numbered():
    names = [f"{'x' * 40}{i}{'y' * 40}" for i in range(2)]
    table = Table("t", ["Method"], [], [Line([name], {}) for name in names])
    lines = as_text([table], Screen(60)).splitlines()
    assert max(map(len, lines)) <= 60
    assert [line.split()[1] for line in lines[4:6]] == ["#1", "#2"]
    rest = "".join(lines[6:]).replace(" ", "")
    assert rest == "".join(f"#{i}{name}" for i, name in enumerate(names, start=1))


# --- LaTeX --------------------------------------------------------------------------------------

ODD = ["[x]", "*y", "a_b%c&d#e$f{g}h~i^j\\k", "<|>", "λ", "é", '"quoted"']


@pytest.fixture
def odd(tmp_path):
    for name in ODD:
        for seed in (1, 2):
            add_pair(tmp_path, name, 80 + seed, 60, sees=["teacher"], seed=seed)
            add_pair(tmp_path, name, 82, 60, trainer=f"Mine{name}", seed=seed)
    return as_latex(tables_of(tmp_path))


def test_latex_is_balanced(odd):
    assert odd.startswith("% In the preamble: \\usepackage{booktabs}\n")
    opened = re.findall(r"\\begin\{(\w+)\}", odd)
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", odd)) and opened
    plain = re.sub(r"\\[\\{}]", "", odd)
    assert plain.count("{") == plain.count("}")
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", odd)[1]
    rows = re.findall(r"^(.*) \\\\$", odd, re.MULTILINE)
    assert len(rows) == 2 + 2 * len(ODD)  # the head, an average, two methods on each
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
        assert not row.startswith(("[", "*"))  # \\ would take them
    for special in "_%#$":
        text = re.sub(r"\$(\\,\\pm\\,|\\lambda)\$", "", odd.partition("\n")[2])
        assert not re.search(rf"(?<!\\){re.escape(special)}", text), special
    labels = re.findall(r"\\label\{(.*?)\}", odd)
    assert len(set(labels)) == len(labels) == odd.count(r"\begin{table}")


ENGINE = next((e for e in ("pdflatex", "tectonic", "xelatex") if shutil.which(e)), None)


@pytest.mark.skipif(ENGINE is None, reason="no LaTeX here")
def test_latex_compiles(odd, tmp_path):
    head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}"
    (tmp_path / "x.tex").write_text(f"{head}\\begin{{document}}{odd}\\end{{document}}")
    quiet = [] if ENGINE == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    command = [ENGINE, *quiet, "x.tex"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stdout[-2000:]
    assert (tmp_path / "x.pdf").stat().st_size > 1000

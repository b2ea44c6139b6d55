"""The report shows what scripts/analyze.py left beside the runs, and says what else it could."""

from __future__ import annotations

import csv
import json
import shlex

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.results.analyses import CHANNELS, EMBEDDING, analyses
from experiments.results.left_out import left_out
from experiments.results.pictures import _hidden, apart, shortened
from experiments.results.report import write_report
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from tests.experiments.fake_runs import add_pair


def write(path, head, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def write_channels(folder, runs):
    rows = [(n, i, b, c, b / c) for n, values in runs.items() for i, (b, c) in enumerate(values)]
    return write(folder / CHANNELS, ["run", "channel", "base", "new", "ratio"], rows)


POINTS = [
    *(("image", "cat", 0, 0), ("image", "cat", 0, 1), ("image", "dog", 0, 9)),
    *(("image", "dog", 0, 4), ("text", "dog", 5, 5), ("text", "cat", 1, 1)),
]


def write_embedding(folder, points=POINTS):
    return write(folder / EMBEDDING, ["kind", "class", "x", "y"], points)


def test_channels(tmp_path):
    runs = {"CoOp, seed 1": [(3, 1), (1, 2), (2, 1)], "DePT_CoOp, seed 1": [(1, 1), (1, 2), (4, 1)]}
    write_channels(tmp_path / "runs" / "analysis", runs)
    (_, sorted_), (_, density) = analyses(tmp_path / "runs")
    assert sorted_.note == f"From analysis/{CHANNELS}."
    assert [panel.title for panel in sorted_.panels] == list(runs)
    assert sorted_.panels[0].says == (
        "Mean channel importance 2.000 on base classes, 1.333 on new ones; higher on base classes "
        "in 67 % of 3 channels."
    )
    base, new = sorted_.figure().axes[0].lines
    assert list(base.get_ydata()) == [1, 2, 3] and list(new.get_ydata()) == [2, 1, 1]
    assert density.panels[0].says == (
        "Median ratio of base to new importance: CoOp, seed 1 2.00; DePT_CoOp, seed 1 1.00."
    )


def test_map(tmp_path):
    write_embedding(tmp_path / "a")
    write_embedding(tmp_path / "b")
    (_, first), (_, second) = analyses(tmp_path)
    assert (first.note, second.note) == (f"From a/{EMBEDDING}.", f"From b/{EMBEDDING}.")
    assert first.panels[0].says == (
        "4 images and the texts of 2 classes; for 75 % of the images the nearest other one is of "
        "their class."
    )
    (axis,) = first.figure().axes
    images, texts = axis.collections
    assert images.get_offsets().tolist() == [[0, 0], [0, 1], [0, 9], [0, 4]]
    assert texts.get_offsets().tolist() == [[5, 5], [1, 1]]
    assert [text.get_text() for text in axis.texts] == ["dog", "cat"]
    assert np.array_equal(images.get_facecolors()[0][:3], texts.get_facecolors()[1][:3])


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: (folder / CHANNELS).write_bytes(b"\xff\xfe\x00"),
        lambda folder: write(folder / CHANNELS, ["run", "base"], [("a", 1)]),
        lambda folder: write(folder / CHANNELS, ["run", "base", "new"], []),
        lambda folder: write_channels(folder, {"same": [(1, 1), (2, 2)]}),
        lambda folder: write_embedding(folder, [("image", "cat", "nan", 0), ("text", "cat", 0, 0)]),
        lambda folder: write_embedding(folder, [("image", "cow", 1, 0), ("text", "cat", 0, 0)]),
        lambda folder: write(folder / EMBEDDING, ["kind", "class", "x", "y"], [("image",)]),
    ],
)
def test_what_is_no_table_is_told_in_a_line(tmp_path, capsys, break_it):
    (tmp_path / "a").mkdir()
    break_it(tmp_path / "a")
    write_embedding(tmp_path / "b")
    assert EMBEDDING in [name for name, _ in analyses(tmp_path)]
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("no picture of an analysis: ")


def test_what_is_not_there_is_told_with_its_command(tmp_path):
    add_pair(tmp_path, "dtd", 80, 70, trainer="CoOp x")
    (folder,) = tmp_path.glob("base2new/train_base/*/*/*/*/seed1")
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "loss": 1}) + "\n")
    summary = summarize(load_scores(tmp_path)[0])
    lines = left_out(summary, {"validation"}, tmp_path)
    assert [reason.split(":")[0] for reason, _ in lines] == [
        *("Confused classes, calibration", "Channel importance", "t-SNE of features"),
    ]
    words = shlex.split(lines[2][1])
    assert words == ["python", "scripts/analyze.py", "embedding", str(folder)] + [
        *("--out", str(tmp_path / "analysis")),
    ]
    write_report(summary, tmp_path / "report.html", folder=tmp_path)
    before = (tmp_path / "report.html").read_text()
    assert "t-SNE of features: no embedding.csv in this folder; this makes it: <code>" in before
    write_embedding(tmp_path / "analysis")
    write_report(summary, tmp_path / "report.html", folder=tmp_path)
    after = (tmp_path / "report.html").read_text()
    assert "t-SNE of features: no" not in after and ">t-SNE of features</h2>" in after


def test_names_on_a_map_stand_apart():
    figure = Figure(figsize=(6, 6))
    axis = figure.subplots()
    xy = np.array([[x / 3, y / 3] for x in range(3) for y in range(3)] + [[0.3, 0.3], [0.34, 0.3]])
    axis.scatter(*xy.T)
    apart(axis, xy, [f"class {i}" for i in range(len(xy))])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axis.texts]
    found = [np.array([b.x0, b.y0, b.x1, b.y1]) / 600 for b in boxes]
    assert all(_hidden(box, found[:i]) < 1e-4 for i, box in enumerate(found))


def test_long_names_keep_their_ends():
    assert shortened("short") == "short"
    assert shortened("a" * 20 + "b" * 20, 11) == "aaaaa…bbbbb"

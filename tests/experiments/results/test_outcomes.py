"""Pictures of what became of each test image, counted by hand; files that can't be counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dassl.metrics import calibration as metric
from experiments.results import outcomes, plots
from experiments.results.of_classes import SIDE, calibration, confusions
from experiments.results.scores import load_scores
from experiments.results.subjects import Subject, Subjects
from experiments.results.summary import summarize
from tests.experiments.fake_runs import add_run

NAMES = ["cat", "dog", "<b>"]
LABELS = [0, 0, 0, 0, 1, 1, 2, 2]
PREDICTED = [0, 0, 1, 1, 1, 0, 2, 2]  # two cats of four are dogs, one dog of two is a cat
COOP, MANY = Subject("CoOp", "tiny", "CoOp"), Subject("Many", "tiny", "Many")
CONFIDENCE = [0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 1.0, 1.0]


def add(root, seed=1, trainer="CoOp", names=NAMES, file="outcomes.npz", **arrays):
    place = "base2new/train_base/dtd"
    folder = add_run(root, place, 62.5, seed=seed, trainer=trainer, classnames=names, ece=10 * seed)
    usual = {"labels": LABELS, "predicted": PREDICTED, "confidence": np.float32(CONFIDENCE)}
    np.savez(folder / file, **(arrays or usual))
    return folder


def summary_of(root):
    return summarize(load_scores(root)[0])


def test_images_are_counted(tmp_path):
    add(tmp_path)
    add(tmp_path, seed=2)
    found = outcomes.tallies(summary_of(tmp_path))
    tally = found["dtd", "base"][COOP]
    assert tally.counts.tolist() == [[4, 4, 0], [2, 2, 0], [0, 0, 4]]
    assert tally.accuracy == 62.5 and tally.ece == [10, 20]
    assert tally.confused(9) == [("cat", "dog", 4, 8), ("dog", "cat", 2, 4)] and NAMES[2] == "<b>"
    assert tally.confused(1) == [("cat", "dog", 4, 8)]
    places = {7: (6, 2, 3.0), 13: (6, 4, 5.4), 14: (4, 4, 4.0)}  # (b/15, (b+1)/15]
    for b in range(outcomes.BINS):
        expected = places.get(b, (0, 0, 0))
        assert (tally.images[b], tally.right[b]) == expected[:2]
        assert tally.sure[b] == pytest.approx(expected[2])


def test_the_diagrams_bins_are_the_errors(tmp_path):
    add(tmp_path)
    tally = outcomes.tallies(summary_of(tmp_path))["dtd", "base"][COOP]
    right = torch.tensor(LABELS) == torch.tensor(PREDICTED)
    error = metric.expected_calibration_error(torch.tensor(CONFIDENCE), right)
    assert outcomes.BINS == metric.BINS
    assert 100 * np.abs(tally.right - tally.sure).sum() / tally.images.sum() == pytest.approx(error)


def test_predictions_serve_where_there_are_no_outcomes(tmp_path):
    logits = np.log([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    add(tmp_path, file="predictions.npz", logits=logits, labels=[0, 0], classnames=NAMES)
    tally = outcomes.tallies(summary_of(tmp_path))["dtd", "base"][COOP]
    assert tally.counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert tally.sure.sum() == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"labels": [0, 3], "predicted": [0, 0], "confidence": [1.0, 1.0]}, "of 3 classes"),
        ({"labels": [0], "predicted": [-1], "confidence": [1.0]}, "of 3 classes"),
        ({"labels": [0], "predicted": [0], "confidence": [np.nan]}, "no probability"),
        ({"labels": [0.5], "predicted": [0], "confidence": [1.0]}, "is damaged"),
        ({"labels": [0, 1], "predicted": [0], "confidence": [1.0]}, "is damaged"),
        ({"labels": [0]}, "is damaged"),
        ({"labels": [[]], "predicted": np.array([[{}]]), "confidence": [1.0]}, "is damaged"),
    ],
)
def test_what_cannot_be_counted_is_told_and_harms_no_other(tmp_path, capsys, arrays, told):
    add(tmp_path)
    broken = add(tmp_path, seed=2, **arrays)
    (tally,) = outcomes.tallies(summary_of(tmp_path))["dtd", "base"].values()
    assert tally.counts.sum() == len(LABELS)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(broken) in error and told in error


def test_a_file_that_is_no_archive(tmp_path, capsys):
    (add(tmp_path) / "outcomes.npz").write_bytes(b"PK\3\4 no archive")
    assert outcomes.tallies(summary_of(tmp_path)) == {}
    assert "outcomes.npz is damaged" in capsys.readouterr().err


def test_other_classes_are_left_out(tmp_path, capsys):
    add(tmp_path)
    add(tmp_path, seed=2, names=["a", "b", "c"])
    found = outcomes.tallies(summary_of(tmp_path))["dtd", "base"]
    assert [t.names for t in found.values()] == [NAMES]
    assert "of other classes" in capsys.readouterr().err


def test_matrix_and_pairs(tmp_path):
    add(tmp_path)
    names = [f"class {i} of a long, long name that goes on" for i in range(SIDE + 1)]
    add(tmp_path, trainer="Many", names=names)
    summary = summary_of(tmp_path)
    found, styles = outcomes.tallies(summary), Subjects(summary).looks
    few = {"few": {COOP: found["dtd", "base"][COOP]}}
    many = {"many": {MANY: found["dtd", "base"][MANY]}}
    both = {(key, "base"): methods for key, methods in {**few, **many}.items()}
    picture = confusions(both, styles, ", 4 shots")
    assert picture.title == "Confused classes, 4 shots"
    assert [p.title for p in picture.panels] == [
        "few, base classes: CoOp",
        "many, base classes: Many",
    ]
    assert picture.panels[0].says == (
        "62.5 % of 8 predictions are right. Most often confused: cat taken for dog: 2 of 4 images; "
        "dog taken for cat: 1 of 2 images."
    )
    matrix, pairs = picture.figure().axes
    np.testing.assert_allclose(
        matrix.images[0].get_array(), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]
    )
    assert [text.get_text() for text in matrix.texts] == ["50", "50", "50", "50", "100"]
    assert [bar.get_width() for bar in pairs.patches] == [50, 50]
    labels = [label.get_text() for label in pairs.get_yticklabels()]
    assert all(len(label) <= 35 and "…" in label for label in labels)


def test_calibration_is_accuracy_against_confidence(tmp_path):
    for seed in (1, 2):
        add(tmp_path, seed=seed)
        add(tmp_path, seed=seed, trainer="DePT_CoOp")
    summary = summary_of(tmp_path)
    picture = calibration(outcomes.tallies(summary), Subjects(summary).looks)
    (panel,) = picture.panels
    assert panel.says.endswith("15 bins; ECE 15.0: CoOp; ECE 15.0: DePT_CoOp.")
    (axis,) = picture.figure().axes
    diagonal, bare, wrapped = axis.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    np.testing.assert_allclose(bare.get_xdata(), [0.5, 0.9, 1])
    np.testing.assert_allclose(bare.get_ydata(), [1 / 3, 2 / 3, 1])
    assert (bare.get_linestyle(), wrapped.get_linestyle()) == ("--", "-")


def test_validation_curves(tmp_path):
    for seed, shift in ((1, 0), (2, 10)):
        folder = add_run(tmp_path, "base2new/train_base/dtd", 60, seed=seed)
        epochs = [{"epoch": e, "loss": 1.0, "val": {"accuracy": 50 + e + shift}} for e in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    add_run(tmp_path, "base2new/train_base/eurosat", 60)
    picture = plots.validation_curves(summary_of(tmp_path))
    (line,) = picture.figure().axes[0].lines
    assert list(line.get_xdata()) == [1, 2] and list(line.get_ydata()) == [56, 57]
    assert "CoOp from 56 at 1 to 57 at 2" in picture.panels[0].says


@pytest.mark.parametrize("value", ["[]", '{"accuracy": 101}', '{"accuracy": "60"}'])
def test_a_validation_that_is_none_is_told_once(tmp_path, capsys, value):
    folder = add_run(tmp_path, "base2new/train_base/dtd", 60)
    (folder / "metrics.jsonl").write_text(f'{{"epoch": 1, "loss": 1, "val": {value}}}\n')
    summary = summary_of(tmp_path)
    assert plots.learning_curves(summary) is None and plots.validation_curves(summary) is None
    assert capsys.readouterr().err.count("no learning curve of a run") == 1


def test_changes_that_all_share_are_in_no_label(tmp_path):
    for trainer, config in (("CoOp", "a@X=1"), ("VPT", "a@X=1")):
        add_run(tmp_path, "base2new/train_base/dtd", 60, trainer=trainer, config=config)
    summary = summary_of(tmp_path)
    assert [one.label for one in Subjects(summary).looks] == ["CoOp", "VPT"]
    add_run(tmp_path, "base2new/train_base/dtd", 60, trainer="MMA", config="a@X=2")
    summary = summary_of(tmp_path)
    assert [one.label for one in Subjects(summary).looks] == ["MMA X=2", "CoOp X=1", "VPT X=1"]

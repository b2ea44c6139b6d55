from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from dassl.utils import UserError, load_checkpoint


def evaluate(true: list[int], pred: list[int], **options):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    for name, value in options.items():
        (cfg if name == "OUTPUT_DIR" else cfg.TEST)[name] = value
    evaluator = build_evaluator(cfg, lab2cname={i: f"class {i}" for i in range(6)})
    scores = torch.nn.functional.one_hot(torch.tensor(pred), 6).float()
    for part in torch.arange(len(true)).split(3):
        evaluator.process(scores[part], torch.tensor(true)[part])
    return evaluator, evaluator.evaluate()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_against_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    true, pred = map(list, zip(*pairs, strict=True))
    _, results = evaluate(true, pred)
    expected = 100 * metrics.accuracy_score(true, pred)
    f1 = metrics.f1_score(true, pred, average="macro", labels=np.unique(true), zero_division=0)
    assert results["accuracy"] == pytest.approx(expected, abs=1e-9)
    assert results["error_rate"] == pytest.approx(100 - expected, abs=1e-9)
    assert results["macro_f1"] == pytest.approx(100 * f1, abs=1e-9)
    assert next(iter(results)) == "accuracy"


def test_printed_lines(capsys):
    evaluator, _ = evaluate([0, 0, 1, 2] * 500, [0, 0, 1, 1] * 500)
    assert capsys.readouterr().out.splitlines() == [
        "=> result",
        "* total: 2,000",
        "* correct: 1,500",
        "* accuracy: 75.0%",
        "* error: 25.0%",
        "* macro_f1: 55.6%",
        "* ece: 39.8%",
    ]
    assert evaluator.total == 2000


def test_accuracy_of_some_classes():
    """Among all of them: an image of class 2 that is taken for class 0 is wrong."""
    evaluator, _ = evaluate([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 2, 0])
    assert evaluator.accuracy_of(slice(0, 2)) == pytest.approx(200 / 3)
    assert evaluator.accuracy_of(slice(2, 6)) == pytest.approx(100 / 3)
    assert evaluator.accuracy_of(slice(3, 6)) is None


def test_calibration_error_of_logits():
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    evaluator = build_evaluator(cfg, lab2cname={})
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], dtype=torch.float16)
    evaluator.process(logits, torch.tensor([0, 0, 0]))
    sure = [1 / (1 + math.exp(-x)) for x in (2, 3, 1)]  # .88 and .95 share no bin
    gaps = [abs(1 - sure[0]), sure[1], abs(1 - sure[2])]
    assert evaluator.evaluate()["ece"] == pytest.approx(100 * sum(gaps) / 3, rel=1e-4)


def test_per_class(capsys):
    evaluator, results = evaluate([0, 0, 2, 2], [0, 1, 2, 2], PER_CLASS_RESULT=True)
    assert results["perclass_accuracy"] == 75.0
    assert [(c["label"], c["classname"], c["accuracy"]) for c in evaluator.per_class] == [
        (0, "class 0", 50.0),
        (2, "class 2", 100.0),
    ]
    assert [(c["recall"], c["predicted"], c["precision"]) for c in evaluator.per_class] == [
        (50.0, 1, 100.0),
        (100.0, 2, 100.0),
    ]
    told = capsys.readouterr().out
    assert "* average: 75.0%" in told and "acc: 50.0%\tprecision: 100.0%" in told
    evaluator, _ = evaluate([0, 1], [1, 1], PER_CLASS_RESULT=True)
    assert [c["precision"] for c in evaluator.per_class] == [None, 50.0]


def test_confusion_matrix(tmp_path):
    evaluate([0, 0, 1], [0, 1, 1], COMPUTE_CMAT=True, OUTPUT_DIR=str(tmp_path))
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    assert torch.equal(matrix, torch.tensor([[0.5, 0.5], [0, 1]]))
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "cmat.pt")


def test_reset_forgets():
    evaluator, _ = evaluate([0], [0])
    evaluator.reset()
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluator.evaluate()

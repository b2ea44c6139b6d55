"""What the protocols' hours are made of: counts by hand, costs on a line, and their product."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import hours
from benchmarks.hours import TEST_JPEG, TRAINING_JPEG, VIEW, Cost, Unit
from dassl.utils import UserError
from experiments.protocols import ROOT, Plan

TINY = ("--backbone", "tiny", "--repeats", "1", "--images", "2", "--classes", "2", "5")
PLAN = Plan(Path("data"), Path("output"))


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)  # and back, whatever the script does


def counted(chains, cached=None) -> Counter[Unit]:
    cached = set() if cached is None else cached
    runs = hours.runs_of(chains).values()
    methods = hours.kinds(run.cfg.TRAINER.NAME for run in runs)
    return sum((hours.count(r, methods[r.cfg.TRAINER.NAME], cached) for r in runs), Counter())


# The describable textures have 47 classes, so 24 base and 23 new ones, and 1692 test images: 864
# and 828. 16 shots of 24 classes are 384 images: 96 batches of 4 in each of 10 epochs.


def test_runs_on_an_untouched_image_tower_share_its_features():
    cached = set()
    assert counted([PLAN.base_to_new("CoOp", "dtd", 1, 16)], cached) == {
        Unit("step", "CoOp", 4, 24): 960,
        Unit("text", "CoOp", 4, 24): 1,
        Unit("text", "CoOp", 4, 23): 1,
        VIEW: 3840 + 864 + 828,
        TRAINING_JPEG: 3840,
        TEST_JPEG: 864 + 828,
    }
    texts = {Unit("text", "DePT_CoOp", 4, 24): 1, Unit("text", "DePT_CoOp", 4, 23): 1}
    steps = {Unit("step", "DePT_CoOp", 4, 24): 960}
    same_seed = counted([PLAN.base_to_new("DePT_CoOp", "dtd", 1, 16)], cached)
    assert same_seed == {**steps, **texts}
    other_seed = counted([PLAN.base_to_new("DePT_CoOp", "dtd", 2, 16)], cached)
    assert other_seed == {**steps, **texts, VIEW: 3840, TRAINING_JPEG: 3840}


def test_a_trained_image_tower_sees_every_image_itself():
    cached = set()
    counted([PLAN.base_to_new("CoOp", "dtd", 1, 16)], cached)
    assert counted([PLAN.base_to_new("MaPLe", "dtd", 1, 16)], cached) == {
        Unit("step", "MaPLe", 4, 24): 960,
        Unit("text", "MaPLe", 4, 24): 1,
        Unit("text", "MaPLe", 4, 23): 1,
        Unit("test image", "MaPLe", 4): 864 + 828,
        TRAINING_JPEG: 3840,
        TEST_JPEG: 864 + 828,
    }


def test_frozen_features_beside_the_images_are_encoded_once():
    cached = set()
    for views in (7680, 0):  # 20 epochs
        work = counted([PLAN.base_to_new("PromptSRC", "dtd", 1, 16)], cached)
        assert work[VIEW] == views and work[TRAINING_JPEG] == 7680
        assert work[Unit("test image", "PromptSRC", 4)] == 864 + 828


def test_text_features_of_every_image():
    work = counted([PLAN.base_to_new("CoCoOp", "dtd", 1, 16)])
    assert work[Unit("step", "CoCoOp", 1, 24)] == 3840
    assert work[Unit("text", "CoCoOp", 1, 23)] == 828


def test_nothing_is_trained_without_training():
    work = counted([PLAN.base_to_new("ZeroshotCLIP", "dtd", 1, 16)])
    assert work[VIEW] == work[TEST_JPEG] == 864 + 828
    assert not any(unit.what == "step" for unit in work) and not work[TRAINING_JPEG]


@pytest.mark.parametrize("batch, views", [(4, 4), (32, 5)])
def test_an_incomplete_batch_is_left_out_unless_it_is_alone(batch, views):
    """One shot of the 5 base classes of EuroSAT."""
    plan = Plan(Path("data"), Path("output"), opts=("DATALOADER.TRAIN_X.BATCH_SIZE", str(batch)))
    work = counted([plan.base_to_new("CoOp", "eurosat", 1, 1)])
    assert work[Unit("step", "CoOp", batch, 5)] == 10
    assert work[TRAINING_JPEG] == 10 * views


def test_transfer_tests_the_model_of_one_training():
    work = counted([PLAN.transfer("domain_generalization", "CoOp", ["imagenet_a"], 1, 16)])
    assert work[Unit("step", "CoOp", 4, 1000)] == 40_000
    assert work[Unit("text", "CoOp", 4, 200)] == 1
    assert work[TEST_JPEG] == 50_000 + 7500


def test_cost_is_on_the_line_through_the_measured_ones():
    measured = {100: Cost(10.0, 100.0), 10: Cost(1.0, 55.0)}
    assert hours.affine(measured, 10) == (1.0, 55.0)
    assert hours.affine(measured, 55) == (5.5, 77.5)
    assert hours.affine(measured, 1000) == (100.0, 550.0)
    assert hours.affine({10: Cost(2.0, 9.0), 20: Cost(1.0, 19.0)}, 30) == (2.0, 29.0)
    assert hours.affine({10: Cost(1.0, 1.0), 20: Cost(9.0, 2.0)}, 5).seconds == 0


def test_hours_are_counts_times_costs():
    step = Unit("step", "CoOp", 4, 24)
    work = Counter({step: 1000, VIEW: 50, TEST_JPEG: 10})
    costs = {step: Cost(3.6, 2e6), VIEW: Cost(72.0, 1e4), TEST_JPEG: Cost(36.0, 0.0)}
    assert hours.summary(work, costs) == {
        "steps": 1000,
        "images encoded": 50,
        "PFLOP": pytest.approx(2000.5),
        "hours": pytest.approx(2.1),
        "hours by part": pytest.approx({"step": 1, "view": 1, "test image, decoded": 0.1}),
    }


def test_table_and_json(tmp_path, capsys):
    protocols = ("--protocols", "cross_dataset", "domain_generalization")
    options = ("--trainers", "CoOp", "MaPLe", "--datasets", "imagenet_a", "imagenet_r")
    file = tmp_path / "hours.json"
    written = ("--markdown", "--json", str(file))
    hours.main([*TINY, *protocols, *options, "--seeds", "1", "--shots", "4", *written])
    result = json.loads(file.read_text())
    assert [row["runs"] for row in result["rows"]] == [6, 6, 10]  # both test the same two models
    assert [row["steps"] for row in result["rows"]] == [20_000] * 3
    assert all(row["hours"] > 0 and row["PFLOP"] > 0 for row in result["rows"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("device ") and "threads 1, precision fp32, torch" in first
    assert lines[-5].startswith("| protocol | trainers | runs |")
    assert lines[-3].startswith("| cross_dataset | CoOp, MaPLe | 6 | 20,000 |")
    assert lines[-1].startswith("| all of these |")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--protocols", "base_to_knew"),
        ("--precision", "fp64"),
        ("--classes", "5", "5"),
        ("--repeats", "0"),
        ("--loaders", "0"),
        ("--backbone", "ViT-Z/1"),
    ],
)
def test_mistakes(wrong):
    with pytest.raises(UserError):
        hours.main([*TINY, *wrong])


def test_unknown_trainer_is_one_line_and_status_2():
    script = [sys.executable, hours.__file__, "--trainers", "CoOops"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no trainer CoOops (did you mean 'CoOp'")


def test_data_set_that_states_no_sizes():
    with pytest.raises(UserError, match="states? its sizes"):
        counted([PLAN.base_to_new("CoOp", "mini_shapes", 1, 16)])

"""What the protocols' hours are made of: counts by hand, costs on a line, and their product."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import hours, work
from benchmarks.hours import Cost
from benchmarks.work import TEST_JPEG, TRAINING_JPEG, VIEW, Unit
from dassl.utils import UserError
from experiments.protocols import PROTOCOLS, ROOT, Plan

TINY = ("--backbone", "tiny", "--repeats", "1", "--images", "2", "--classes", "2", "5")
PLAN = Plan(Path("data"), Path("output"))


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)  # and back, whatever the script does


def counted(chains, cached=None) -> Counter[Unit]:
    cached = set() if cached is None else cached
    runs = work.runs_of(chains).values()
    methods = work.kinds(run.cfg.TRAINER.NAME for run in runs)
    return sum((work.count(r, methods[r.cfg.TRAINER.NAME], cached) for r in runs), Counter())


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
        done = counted([PLAN.base_to_new("PromptSRC", "dtd", 1, 16)], cached)
        assert done[VIEW] == views and done[TRAINING_JPEG] == 7680
        assert done[Unit("test image", "PromptSRC", 4)] == 864 + 828


def test_text_features_of_every_image():
    done = counted([PLAN.base_to_new("CoCoOp", "dtd", 1, 16)])
    assert done[Unit("step", "CoCoOp", 1, 24)] == 3840
    assert done[Unit("text", "CoCoOp", 1, 23)] == 828


def test_nothing_is_trained_without_training():
    done = counted([PLAN.base_to_new("ZeroshotCLIP", "dtd", 1, 16)])
    assert done[VIEW] == done[TEST_JPEG] == 864 + 828
    assert not any(unit.what == "step" for unit in done) and not done[TRAINING_JPEG]


@pytest.mark.parametrize("batch, views", [(4, 4), (32, 5)])
def test_an_incomplete_batch_is_left_out_unless_it_is_alone(batch, views):
    """One shot of the 5 base classes of EuroSAT."""
    plan = Plan(Path("data"), Path("output"), opts=("DATALOADER.TRAIN_X.BATCH_SIZE", str(batch)))
    done = counted([plan.base_to_new("CoOp", "eurosat", 1, 1)])
    assert done[Unit("step", "CoOp", batch, 5)] == 10
    assert done[TRAINING_JPEG] == 10 * views


def test_transfer_tests_the_model_of_one_training():
    done = counted([PLAN.transfer("domain_generalization", "CoOp", ["imagenet_a"], 1, 16)])
    assert done[Unit("step", "CoOp", 4, 1000)] == 40_000
    assert done[Unit("text", "CoOp", 4, 200)] == 1
    assert done[TEST_JPEG] == 50_000 + 7500


def test_cost_is_on_the_line_through_the_measured_ones():
    measured = {100: Cost(10.0, 100.0), 10: Cost(1.0, 55.0)}
    assert hours.affine(measured, 10) == (1.0, 55.0)
    assert hours.affine(measured, 55) == (5.5, 77.5)
    assert hours.affine(measured, 1000) == (100.0, 550.0)
    assert hours.affine({10: Cost(2.0, 9.0), 20: Cost(1.0, 19.0)}, 30) == (2.0, 29.0)
    assert hours.affine({10: Cost(1.0, 1.0), 20: Cost(9.0, 2.0)}, 5).seconds == 0


def test_hours_are_counts_times_costs():
    step = Unit("step", "CoOp", 4, 24)
    done = Counter({step: 1000, VIEW: 50, TEST_JPEG: 10})
    costs = {step: Cost(3.6, 2e6), VIEW: Cost(72.0, 1e4), TEST_JPEG: Cost(36.0, 0.0)}
    assert hours.summary(done, costs) == {
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
        ("--arithmetic",),
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


def test_counted_iterations_are_the_steps():
    """500 for each of 16 shots; 47 · 16 images are 23 batches of 32, of 348 passes."""
    plan = Plan(Path("data"), Path("output"), config="vit_b16_clip_lora")
    done = counted([plan.all_classes("CLIP_LoRA", "dtd", 1, 16)])
    assert done[Unit("step", "CLIP_LoRA", 32, 47)] == 8000
    assert done[TRAINING_JPEG] == 348 * 23 * 32


def test_a_first_stage_is_counted_with_its_run():
    plan = Plan(Path("data"), Path("output"), config="vit_b16_dpc")
    runs = work.runs_of([plan.base_to_new("DPC_CoOp", "dtd", 1, 16)])
    done = work.works_of({"plan": runs})["plan"]
    assert done[Unit("step", "CoOp", 32, 24)] == 50 * 12
    assert done[Unit("step", "DPC_CoOp", 4, 24)] == 20 * 96
    assert done[Unit("text", "CoOp", 32, 24)] == 1  # it is tested, too


def test_images_of_adapters_are_encoded_as_often_as_they_look_at_them():
    """1 view of LP++, 20 of ZS-LP's; Tip-Adapter's 10 are the first of -F's, and an image's own."""
    cached = set()

    def views(trainer: str) -> int:
        return counted([PLAN.all_classes(trainer, "dtd", 1, 16)], cached)[VIEW]

    images = 47 * 16
    assert views("LPpp") == images + 1692
    assert views("ZSLP") == 19 * images
    assert views("CLAP") == views("LPpp") == 0
    cached.clear()
    assert views("TipAdapter") == 11 * images + 1692
    assert views("TipAdapterF") == 10 * (2 * 256)  # an incomplete batch is left out
    other_seed = counted([PLAN.all_classes("TipAdapter", "dtd", 2, 16)], cached)
    assert other_seed[VIEW] == 11 * images


def test_counts_alone(tmp_path):
    file = tmp_path / "count.json"
    result = hours.main(["--count", "--protocols", "zero_shot", "--json", str(file)])
    assert result["rows"] == [
        {
            "protocol": "zero_shot",
            "trainers": "ZeroshotCLIP",
            "runs": 33,
            "steps": 0,
            "images encoded": 267_390,
        }
    ]
    counted = ["--datasets", "dtd", "--protocols", "zero_shot", "--json", str(file)]
    hours.main([*TINY, "--count", "--arithmetic", *counted])
    (row,) = json.loads(file.read_text())["rows"]
    assert row["PFLOP"] > 0 and "hours" not in row


def test_a_teacher_on_a_backbone_of_its_own_is_counted_without_costs(capsys):
    words = ["--protocols", "zero_shot", "transductive", "--datasets", "dtd", "--seeds", "1"]
    rows = hours.main([*TINY, "--count", "--arithmetic", *words])["rows"]
    assert [row["protocol"] for row in rows] == ["zero_shot", "transductive"]
    assert rows[1]["steps"] > 0 and "PFLOP" not in rows[1]
    printed = capsys.readouterr().out
    assert "transductive: on several backbones" in printed and printed.rstrip().endswith("–")


def test_data_set_that_states_no_sizes():
    with pytest.raises(UserError, match="states? its sizes"):
        counted([PLAN.base_to_new("CoOp", "mini_shapes", 1, 16)])


# Planned in seconds; the others with RUN_DOCS=1, and operations too.
QUICK = {"base_to_new", "cross_dataset", "domain_generalization", "zero_shot"}


def test_the_page_has_what_the_command_prints():
    """Every table of docs/reproduce.md under its heading, row by row."""
    page = (ROOT / "docs/reproduce.md").read_text()
    part = page[page.index("## What each table costs") :].partition("\n## ")[0]
    tables = re.findall(r"^\| protocol \|.*\n\| ---.*\n((?:\|.*\n)+)", part, re.M)
    (together, alone) = ([_row(line) for line in table.splitlines()] for table in tables)
    assert {name for name, *_ in together} == {*PROTOCOLS, "all of these"}
    total = next(row for row in together if row[0] == "all of these")
    together.remove(total)
    assert all(trainers == list(PROTOCOLS[name].trainers) for name, trainers, _ in together)
    whole = bool(os.environ.get("RUN_DOCS"))
    options = ["--count", "--arithmetic", "--images", "8"] if whole else ["--count"]
    compared = 0
    for name, trainers, numbers in [*together, *alone]:
        if whole or name in QUICK:
            words = ["--protocols", name, "--trainers", *trainers]
            (row,) = hours.main([*options, *words])["rows"]
            shown = hours.table([row], [c for c in hours.COLUMNS if c in row], markdown=True)
            assert numbers[: 4 if whole else 3] == _row(shown.splitlines()[-1])[2], name
            compared += 1
    assert compared >= len(QUICK) + len(alone)
    if whole:
        rows = hours.main(options)["rows"]
        row = next(row for row in rows if row["protocol"] == total[0])
        shown = hours.table([row], [c for c in hours.COLUMNS if c in row], markdown=True)
        assert total == _row(shown.splitlines()[-1])


def _row(line: str) -> tuple[str, list[str], list[str]]:
    """Protocol, trainers and numbers of a Markdown table's line."""
    name, trainers, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
    return name, trainers.split(", ") if trainers else [], numbers

"""What may stand in one row of a table: by the identities of the results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from tests.experiments.fake_runs import add_run, identity

ROOT = Path(__file__).resolve().parents[3]
PLACE = "base2new/train_base/dtd"


def summary_of(folder: Path):
    return summarize(load_scores(folder)[0])


def seeds(root: Path, *identities: dict, **results: list) -> None:
    """A run per identity, seeds 1, 2, …; further entries of result.json as a list each."""
    for seed, each in enumerate(identities, start=1):
        more = {name: values[seed - 1] for name, values in results.items()}
        add_run(root, PLACE, 80, seed=seed, identity=each, **more)


def assert_one_row(root: Path, number: int) -> None:
    summary = summary_of(root)
    assert not summary.refused
    (row,) = summary.rows
    assert len(row.cells["dtd", "base"]) == number


# --- Settings -----------------------------------------------------------------------------------


def test_a_newer_versions_key_at_its_default_mixes_nothing(tmp_path):
    seeds(tmp_path, identity(), identity(TRAIN__CUDA_GRAPH=True, OPTIM__MOMENTUM=0.9))
    assert_one_row(tmp_path, 2)
    assert summary_of(tmp_path).notes == []


def test_a_key_at_another_value_than_its_default_does(tmp_path):
    seeds(tmp_path, identity(), identity(OPTIM__MOMENTUM=0.5))
    (refused,) = summary_of(tmp_path).refused
    assert "mixed configurations: OPTIM.MOMENTUM is None in" in refused and "0.5 in" in refused


def test_a_key_that_this_version_does_not_know_is_noted(tmp_path):
    seeds(tmp_path, identity(), identity(OPTIM__UNHEARD_OF=3))
    assert_one_row(tmp_path, 2)
    (note,) = summary_of(tmp_path).notes
    assert "only some runs have OPTIM.UNHEARD_OF" in note and "not compared" in note


def test_what_two_runs_say_of_it_is_compared_all_the_same(tmp_path):
    seeds(tmp_path, identity(OPTIM__UNHEARD_OF=3), identity(OPTIM__UNHEARD_OF=4))
    assert "OPTIM.UNHEARD_OF is 3" in summary_of(tmp_path).refused[0]


def test_seeds_and_data_sets_settings_are_theirs(tmp_path):
    for dataset in ("dtd", "pets"):
        for seed in (1, 2):
            more = {"SEED": seed, "DATASET__NAME": dataset, "DATASET__NUM_SHOTS": 16}
            named = identity({"test": dataset, "classes": dataset}, **more)
            add_run(tmp_path, f"base2new/train_base/{dataset}", 80, seed=seed, identity=named)
    summary = summary_of(tmp_path)
    assert len(summary.rows) == 1 and not summary.refused


def test_another_number_of_shots_mixes(tmp_path):
    seeds(tmp_path, identity(DATASET__NUM_SHOTS=16), identity(DATASET__NUM_SHOTS=4))
    assert "DATASET.NUM_SHOTS" in summary_of(tmp_path).refused[0]


def test_another_backbone_file_under_one_name_mixes(tmp_path):
    seeds(tmp_path, identity(), identity(files={"MODEL.BACKBONE.NAME": "bad"}))
    assert "backbone is 'f00'" in summary_of(tmp_path).refused[0]


def test_each_run_may_start_from_its_own_model_if_all_start_from_one(tmp_path):
    starts = [identity(files={"MODEL.INIT_WEIGHTS": digest}) for digest in ("a", "b")]
    seeds(tmp_path / "all", *starts)
    assert_one_row(tmp_path / "all", 2)
    seeds(tmp_path / "some", identity(), *starts)
    assert "MODEL.INIT_WEIGHTS" in summary_of(tmp_path / "some").refused[0]


def test_the_backbones_name_decides_on_the_papers_numbers(tmp_path):
    for folder, name in (("a", "ViT-B/32"), ("b", "ViT-B/16")):
        add_run(tmp_path / folder, PLACE, 80, identity=identity(), backbone=name)
        (record,) = summary_of(tmp_path / folder).records
        assert bool(record.published) == (name == "ViT-B/16")


# --- Data ---------------------------------------------------------------------------------------


def test_samples_may_differ_by_seed(tmp_path):
    seeds(tmp_path, *(identity({"train_x": digest, "val": digest}) for digest in "abc"))
    assert_one_row(tmp_path, 3)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("test", "other test images or labels"),
        ("classes", "other classes"),
        ("template", "template 'a {}.' -> 'other'"),
    ],
)
def test_other_data_for_one_seed_mix(tmp_path, part, told):
    seeds(tmp_path, identity(), identity(), identity({part: "other"}))
    (refused,) = summary_of(tmp_path).refused
    assert f"mixed data of dtd: {told}, between {tmp_path}" in refused
    assert "seed1 and" in refused and refused.endswith("seed3")


def test_another_split_for_one_seed_mixes(tmp_path):
    seeds(tmp_path / "same", identity(), identity(), split_hash=["s", "s"])
    assert_one_row(tmp_path / "same", 2)
    seeds(tmp_path / "other", identity(), identity(), split_hash=["s", "z"])
    assert "mixed data of dtd: another split" in summary_of(tmp_path / "other").refused[0]


def test_base_and_new_classes_are_others(tmp_path):
    add_run(tmp_path, PLACE, 80, identity=identity())
    new = identity({"classes": "n", "test": "n"})
    add_run(tmp_path, PLACE.replace("train_base", "test_new"), 70, identity=new)
    assert not summary_of(tmp_path).refused


def test_two_own_data_sets_without_names_are_told_how_to_be_told_apart(tmp_path):
    for folder in ("a", "b"):
        add_run(tmp_path / folder, PLACE, 80, identity=identity(), dataset_label="")
    (refused,) = summary_of(tmp_path).refused
    assert refused.endswith("give each data set of your own a DATASET.LABEL")
    for folder in ("c", "d"):
        named = {"dataset_label": folder, "identity": identity({"test": folder})}
        add_run(tmp_path / "named" / folder, PLACE, 80, **named)
    assert {dataset for dataset, _ in summary_of(tmp_path / "named").rows[0].cells} == {"c", "d"}


def test_a_result_of_before_is_read_and_told_of(tmp_path):
    seeds(tmp_path, identity())
    add_run(tmp_path, PLACE, 70, seed=2)
    assert_one_row(tmp_path, 2)
    assert summary_of(tmp_path).notes[0].startswith("1 of 2 results don't say what")


# --- Runs ---------------------------------------------------------------------------------------


@pytest.fixture
def real(command, picture_root, tmp_path):
    """real(seed, *words, root=…): train CoOp for an epoch, in the layout's folder."""

    def run(seed: int, *words: str, root: Path = picture_root) -> Path:
        place = f"base2new/train_base/image_folder/shots_2/CoOp/mini/seed{seed}"
        folder = tmp_path / "output" / place
        options = {"SEED": seed, "OPTIM__MAX_EPOCH": 1}
        train.main(command("CoOp", "--root", str(root), *words, output=folder, **options))
        return folder

    return run


def tables(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "parse_results.py", root / "output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_seeds_on_different_machines_are_one_row(real, tmp_path):
    real(1)
    real(2, "--no-cache", "DATALOADER.NUM_WORKERS", "1")
    answer = tables(tmp_path)
    assert answer.returncode == 0 and "refused" not in answer.stderr
    assert "note:" not in answer.stderr and "1,2" in answer.stdout
    # One of before is read as it was.
    path = real(3) / "result.json"
    result = json.loads(path.read_text())
    del result["identity"]
    path.write_text(json.dumps(result))
    answer = tables(tmp_path)
    assert answer.returncode == 0 and "1-3" in answer.stdout
    assert "note: 1 of 3 results don't say what their numbers depend on" in answer.stderr


def test_a_seed_on_data_with_other_labels_is_refused(real, picture_root, tmp_path):
    real(1)
    other = tmp_path / "other"
    shutil.copytree(picture_root, other, ignore=shutil.ignore_patterns(".cache"))
    real(2, root=other)
    assert tables(tmp_path).returncode == 0  # the same data, elsewhere
    for i in range(10):  # two classes change places
        one, two = (other / name / f"{i}.png" for name in ("ant", "cat"))
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
    real(3, root=other)
    answer = tables(tmp_path)
    assert answer.returncode == 2
    assert "mixed data of image_folder: other test images or labels, between" in answer.stderr

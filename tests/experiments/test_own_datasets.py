"""Data sets of a user's own: each has a name, and several stand in one protocol and one table."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import train
from dassl.utils import UserError
from experiments.chains import side_by_side
from experiments.chosen_datasets import absolute, check_labels, chosen
from experiments.launch import make_plan, parse_args
from experiments.results import scores
from experiments.results.scores import dataset_stems, load_scores, read_score
from tests.experiments.fake_runs import add_run
from tuning.options import parse_args as parse_run
from tuning.options import setup_cfg

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def chains(*words: str, together: int = 1):
    return side_by_side(make_plan(parse_args(list(words))), together)


# --- Names --------------------------------------------------------------------------------------


def test_a_data_sets_label_is_its_configs_name_unless_that_says_otherwise(tmp_path):
    for name, text in (("mine", ""), ("other", ", LABEL: theirs")):
        (tmp_path / f"{name}.yaml").write_text(f"DATASET: {{NAME: ImageFolder{text}}}")
    words = ["--dataset-config-file", str(tmp_path / "mine.yaml")]
    assert setup_cfg(parse_run(words)).DATASET.LABEL == "mine"
    assert setup_cfg(parse_run([*words, "DATASET.LABEL", "yours"])).DATASET.LABEL == "yours"
    words = ["--dataset-config-file", str(tmp_path / "other.yaml")]
    assert setup_cfg(parse_run(words)).DATASET.LABEL == "theirs"
    words = ["--dataset-config-file", "configs/datasets/image_folder.yaml"]
    assert setup_cfg(parse_run(words)).DATASET.LABEL == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dtdd"], "no data set dtdd.*did you mean 'dtd'"),
        (["dtd=/data"], "dtd is in configs/datasets already"),
        (["mine="], "no data set mine=: say NAME=FOLDER"),
        (["=/data"], "can't be called ''"),
        (["a b=/data"], "can't be called 'a b'"),
        (["../x=/data"], "can't be called"),
        (["mine=/a", "mine=/b"], "mine=/a and mine=/b are both called mine"),
    ],
)
def test_a_wrong_name_is_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        check_labels(words)
    assert "\n" not in str(error.value)


def test_a_folder_is_taken_from_where_the_command_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("mine=here") == f"mine={tmp_path / 'here'}"
    assert (absolute("dtd"), absolute("mine=")) == ("dtd", "mine=")


def test_own_folders_in_a_plan():
    words = ["base_to_new", "--trainers", "CoOp", "--seeds", "1-2", "--datasets"]
    plan = chains(*words, "a=/far/my images", "b=/near", "--root", "/elsewhere", together=8)
    assert [chain.name for chain in plan] == [f"CoOp {n} 16 shots seed 1|2" for n in "ab"]
    train_a, test_a = plan[0].jobs[0], plan[0].jobs[2]
    assert train_a.folder.as_posix().endswith("train_base/a/shots_16/CoOp/vit_b16_ep10/seed1")
    for job in (train_a, test_a):
        cfg = setup_cfg(parse_run(list(job.arguments)), tell=False)
        assert (cfg.DATASET.NAME, cfg.DATASET.LABEL) == ("ImageFolder", "a")
        assert cfg.DATASET.ROOT == "/far/my images"
    assert chosen("a=/far/my images").trainers_config == ""


def test_results_that_do_not_say_a_label_go_by_their_path_or_readers_name(tmp_path):
    plain = {"accuracy": 50, "classes": "all", "trainer": "CoOp", "seed": 1, "shots": 16}
    for folder, more, expected in (
        ("x", {"dataset": "OxfordPets"}, "oxford_pets"),
        ("y", {"dataset": "Unheard"}, "Unheard"),
        ("z", {"dataset": "ImageFolder", "dataset_label": ""}, "image_folder"),
        ("w", {"dataset": "ImageFolder", "dataset_label": "mine"}, "mine"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "result.json").write_text(json.dumps(plain | more))
        assert read_score(tmp_path / folder).dataset == expected
    run = add_run(tmp_path, "base2new/train_base/pets", 50, dataset_label="")
    assert read_score(run).dataset == "pets"
    run = add_run(tmp_path, "base2new/train_base/cats", 50, dataset_label="mine")
    assert read_score(run).dataset == "mine"


def test_a_reader_with_several_configs_stands_for_none_of_them(tmp_path, monkeypatch):
    folder = tmp_path / "datasets"
    folder.mkdir()
    for name, text in (
        ("aaa", "NAME: ImageFolder, ROOT: /here"),
        ("bbb", "NAME: ImageFolder, LABEL: b"),
        ("image_folder", "NAME: ImageFolder, LABEL: ''"),
        ("one", "NAME: Pets"),
        ("two", "NAME: Pets"),
    ):
        (folder / f"{name}.yaml").write_text(f"DATASET: {{{text}}}")
    monkeypatch.setattr(scores, "CONFIGS", tmp_path)
    dataset_stems.cache_clear()
    assert dataset_stems() == {"ImageFolder": "image_folder"}
    dataset_stems.cache_clear()


# --- Runs ---------------------------------------------------------------------------------------


def script(python: str, name: str, *words: object) -> subprocess.CompletedProcess:
    command = [python, ROOT / "scripts" / name, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_two_own_folders_in_one_protocol_table_and_report(python, picture_root, backbone, tmp_path):
    other = tmp_path / "my pictures"
    shutil.copytree(picture_root, other, ignore=shutil.ignore_patterns(".cache"))
    shutil.rmtree(other / "ant")
    shutil.rmtree(other / ".cache", ignore_errors=True)
    for split in other.glob("*split*"):
        shutil.rmtree(split) if split.is_dir() else split.unlink()
    settings = {"MODEL.BACKBONE.NAME": backbone, "INPUT.SIZE": "(32, 32)", "OPTIM.MAX_EPOCH": 1}
    words = [
        *("base_to_new", "--trainers", "CoOp", "--config", "mini", "--seeds", "1"),
        *("--shots", 2, "--output", tmp_path / "output", "--jobs", 1),
        *("--datasets", f"creatures={picture_root}", f"fewer={other}"),
        *("--opts", *(word for pair in settings.items() for word in pair)),
    ]
    answer = script(python, "run_protocol.py", *words)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found, problems = load_scores(tmp_path / "output")
    assert not problems
    assert {(s.dataset, s.classes) for s in found} == {
        (name, part) for name in ("creatures", "fewer") for part in ("base", "new")
    }
    page = tmp_path / "report.html"
    answer = script(python, "parse_results.py", tmp_path / "output", "--html", page)
    assert answer.returncode == 0, answer.stderr
    lines = [re.split(r"\s{2,}", line)[:2] for line in answer.stdout.splitlines()]
    for name in ("average", "creatures", "fewer"):
        assert [name, "CoOp"] in lines
    assert "<caption>creatures</caption>" in page.read_text()


def test_a_run_outside_the_layout_is_called_by_its_own_config(command, tmp_path):
    """Two configs of one reader: not by whichever of them comes first."""
    for name in ("zebras", "apes"):
        file = tmp_path / f"{name}.yaml"
        file.write_text("DATASET: {NAME: ImageFolder}")
        words = ["--dataset-config-file", str(file)]
        train.main(command("ZeroshotCLIP", *words, output=tmp_path / "out" / name))
    found, _ = load_scores(tmp_path / "out")
    assert sorted(score.dataset for score in found) == ["apes", "zebras"]


def test_a_transfer_between_own_data_sets_knows_its_source(command, tmp_path):
    home, away = tmp_path / "out" / "home", tmp_path / "out" / "away"
    train.main(command("CoOp", "DATASET.LABEL", "mine", output=home))
    words = ["--eval-only", "--model-dir", str(home), "DATASET.LABEL", "yours"]
    train.main(command("CoOp", *words, output=away))
    found, _ = load_scores(tmp_path / "out")
    assert [(s.dataset, s.source, s.protocol) for s in found] == [
        ("yours", "mine", "cross_dataset"),
        ("mine", "", "all_classes"),
    ]

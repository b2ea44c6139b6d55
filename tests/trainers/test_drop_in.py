"""Trainer files written elsewhere for Dassl and OpenAI's clip run from trainers/, unmodified."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPO = HERE.parents[1]


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code with the two files dropped into trainers/."""
    copy = tmp_path / "checkout"
    for part in ("clip", "dassl", "datasets", "mini_world", "trainers", "tuning"):
        shutil.copytree(REPO / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "train.py", copy)
    for file in HERE.glob("drop_in_*.py"):
        shutil.copy(file, copy / "trainers")
    return copy


@pytest.mark.parametrize(
    "name,model", [("ElsewhereCoOp", "prompt_learner"), ("ElsewhereProbe", "Probe")]
)
def test_runs_unmodified(checkout, command, tmp_path, name, model):
    def run(*arguments):
        process = subprocess.run(
            [sys.executable, "train.py", *arguments],
            cwd=checkout,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    trained = run(*command(name))
    assert (tmp_path / "run" / model / "model.pth.tar-2").is_file()
    assert (tmp_path / "run" / "result.json").is_file()
    again = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "2")
    tested = run(*command(name, *again, output=tmp_path / "eval"))
    accuracy = re.compile(r"\* accuracy: ([\d.]+)%")
    assert accuracy.findall(trained)[-1] == accuracy.findall(tested)[-1]

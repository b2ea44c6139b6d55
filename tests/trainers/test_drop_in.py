"""Trainer files written elsewhere for Dassl and OpenAI's clip run from trainers/, unmodified."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPO = HERE.parents[1]


# Files that can't be used, and the line that says so. The first ones by name: none may win by that.
LEFT_OUT = {
    "trainers/aaa.py": (
        "from dassl.engine import TRAINER_REGISTRY, TrainerX\n"
        "@TRAINER_REGISTRY.register()\nclass CoOp(TrainerX): ...\n",
        "the trainer CoOp is registered already, by trainers.coop",
    ),
    "trainers/patched.py": (
        "from clip.clip import load_with_prompts\nclass NeedsPatchedClip: ...\n",
        "ImportError: cannot import name 'load_with_prompts' from 'clip.clip'",
    ),
    "trainers/other_default.py": (
        "from dassl.engine import TRAINER_REGISTRY, TrainerX\n"
        "@TRAINER_REGISTRY.register()\nclass OtherDefault(TrainerX): ...\n"
        "def extend_cfg(cfg):\n    cfg.TRAINER.COOP.N_CTX = 5\n",
        "the default of TRAINER.COOP.N_CTX is 16, not 5",
    ),
    "datasets/aaa.py": (
        "from dassl.data.datasets import DATASET_REGISTRY, DatasetBase\n"
        "@DATASET_REGISTRY.register()\nclass EuroSAT(DatasetBase): ...\n",
        "the dataset EuroSAT is registered already, by datasets.eurosat",
    ),
    "datasets/broken.py": ("import nothing_such\n", "No module named 'nothing_such'"),
}


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code with the files dropped into trainers/ and datasets/."""
    copy = tmp_path / "checkout"
    for part in ("clip", "dassl", "datasets", "mini_world", "trainers", "tuning"):
        shutil.copytree(REPO / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "train.py", copy)
    for file in HERE.glob("drop_in_*.py"):
        shutil.copy(file, copy / "trainers")
    for name, (text, _) in LEFT_OUT.items():
        (copy / name).write_text(text)
    return copy


def started(python, checkout, *arguments):
    return subprocess.run(
        [python, "train.py", *arguments],
        cwd=checkout,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    "name,model",
    [
        ("ElsewhereCoOp", "prompt_learner"),
        ("ElsewhereProbe", "Probe"),
        ("ElsewhereZeroshot", "scale"),
    ],
)
def test_runs_unmodified(python, checkout, command, tmp_path, name, model):
    def run(*arguments):
        process = started(python, checkout, *arguments)
        assert process.returncode == 0, process.stderr
        for name, (_, reason) in LEFT_OUT.items():
            (line,) = [line for line in process.stderr.splitlines() if line.startswith(name)]
            assert line.startswith(f"{name} left out: ") and reason in line
        return process.stdout

    trained = run(*command(name))
    assert (tmp_path / "run" / model / "model.pth.tar-2").is_file()
    assert (tmp_path / "run" / "result.json").is_file()
    again = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "2")
    tested = run(*command(name, *again, output=tmp_path / "eval"))
    accuracy = re.compile(r"\* accuracy: ([\d.]+)%")
    assert accuracy.findall(trained)[-1] == accuracy.findall(tested)[-1]


def test_whoever_asks_for_a_trainer_that_is_left_out_is_told_why(python, checkout, command):
    process = started(python, checkout, *command("NeedsPatchedClip"))
    assert process.returncode == 2
    reason = "trainers/patched.py left out: ImportError: cannot import name 'load_with_prompts'"
    assert f"error: trainer 'NeedsPatchedClip' can't be had: {reason}" in process.stderr


def test_what_comes_with_this_code_comes_first():
    """Every registered class of ours is in a module that is named as ours."""
    import datasets
    import trainers
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    trainers.modules()
    for registry, package, own in (
        (TRAINER_REGISTRY, "trainers", trainers.METHODS),
        (DATASET_REGISTRY, "datasets", datasets.READERS),
    ):
        files = {file.stem for file in (REPO / package).glob("*.py")}
        homes = [registry.get(name).__module__.split(".") for name in registry]
        assert {home[-1] for home in homes if home[0] == package} <= set(own) <= files

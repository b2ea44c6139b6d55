"""docs/new_method.md: its examples, dropped into a copy of the code, run and meet the contract."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
    copy = tmp_path / "checkout"
    parts = (
        "clip",
        "configs",
        "dassl",
        "datasets",
        "mini_world",
        "tests",
        "trainers",
        "tuning",
        "train.py",
    )
    for part in (*parts, "pyproject.toml"):
        if (REPO / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.resume")
            shutil.copytree(REPO / part, copy / part, ignore=ignored)
        else:
            shutil.copy(REPO / part, copy)
    text = (REPO / "docs" / "new_method.md").read_text(encoding="utf-8")
    files = re.findall(r"`trainers/(\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert len(files) == text.count("```python") == 4
    for name, code in files:
        (copy / "trainers" / name).write_text(code, encoding="utf-8")
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    for name, content in (
        ("ScaledText", config),
        ("DePT_ScaledText", "_BASE_: ../ScaledText/mini.yaml\n"),
    ):
        folder = copy / "configs" / "trainers" / name
        folder.mkdir()
        (folder / "mini.yaml").write_text(content)
    return copy


def started(checkout, *words, python=sys.executable, **environment):
    return subprocess.run(
        [python, *words],
        cwd=checkout,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def losses_of(python, checkout, command, folder, trainer, *words, **options):
    """Those of the last epoch of a run."""
    words = command(trainer, *words, output=folder, **options)
    out = started(checkout, "train.py", *words, python=python)
    assert out.returncode == 0, out.stderr
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return set(json.loads(lines[-1])["losses"])


def test_examples_run(python, checkout, command, tmp_path):
    config = checkout / "configs" / "trainers" / "DePT_ScaledText" / "mini.yaml"
    words = ("--config-file", str(config))
    scaled = losses_of(python, checkout, command, tmp_path / "scaled", "DePT_ScaledText", *words)
    assert scaled == {"itm", "cat", "near_one"}
    views = losses_of(python, checkout, command, tmp_path / "views", "DePT_AgreeingViews")
    assert views == {"itm", "cat", "agree"}
    branches = losses_of(python, checkout, command, tmp_path / "branches", "BlockBranches")
    assert branches == {"itm"}
    teacher = {"TRAINER__TAUGHT_TEXT__TEACHER": tmp_path / "branches"}
    taught = losses_of(python, checkout, command, tmp_path / "taught", "TaughtText", **teacher)
    assert taught == {"itm", "taught"}


FURTHER = "AgreeingViews or TaughtText or BlockBranches"


def test_examples_meet_the_contract(checkout):
    chosen = f"ScaledText or (({FURTHER}) and not DePT and not precision)"
    out = started(
        checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen,
        "tests/trainers/test_contract.py", EVERY_TRAINER="1",
    )  # fmt: skip
    assert out.returncode == 0, out.stdout
    assert int(re.search(r"(\d+) passed", out.stdout)[1]) >= 2 * 9 + 3 * 6

"""docs/new_method.md: its example, dropped into a copy of the code, runs and meets the contract."""

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
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (copy / "trainers" / "scaled_text.py").write_text(code, encoding="utf-8")
    for name, content in (
        ("ScaledText", config),
        ("DePT_ScaledText", "_BASE_: ../ScaledText/mini.yaml\n"),
    ):
        folder = copy / "configs" / "trainers" / name
        folder.mkdir()
        (folder / "mini.yaml").write_text(content)
    return copy


def python(checkout, *words):
    return subprocess.run(
        [sys.executable, *words],
        cwd=checkout,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_example_runs(checkout, command, tmp_path):
    config = checkout / "configs" / "trainers" / "DePT_ScaledText" / "mini.yaml"
    out = python(checkout, "train.py", *command("DePT_ScaledText", "--config-file", str(config)))
    assert out.returncode == 0, out.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert set(json.loads(lines[-1])["losses"]) == {"itm", "cat", "near_one"}


def test_example_meets_the_contract(checkout):
    out = python(
        checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "ScaledText",
        "tests/trainers/test_contract.py",
    )  # fmt: skip
    assert out.returncode == 0, out.stdout
    assert int(re.search(r"(\d+) passed", out.stdout)[1]) >= 12

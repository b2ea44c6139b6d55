"""A protocol from one command, with one broken data set in the list, then its tables and report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str, *arguments: object, python=sys.executable) -> subprocess.CompletedProcess:
    command = [python, ROOT / "scripts" / name, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def command(picture_root, backbone, output) -> list[object]:
    settings = {
        "MODEL.BACKBONE.NAME": backbone,
        "INPUT.SIZE": "(32, 32)",
        "OPTIM.MAX_EPOCH": 2,
        "TRAINER.COOP.N_CTX": 3,
    }
    return [
        *("base_to_new", "--trainers", "DePT_CoOp", "--datasets", "image_folder", "oxford_pets"),
        *("--seeds", "1-2", "--shots", 2, "--root", picture_root, "--output", output),
        *("--config", "mini", "--jobs", 2, "--opts", *(w for p in settings.items() for w in p)),
    ]


@pytest.fixture(scope="module")
def first(command) -> subprocess.CompletedProcess:
    return script("run_protocol.py", *command)


def test_a_broken_data_set_is_named_and_the_others_go_on(first, output):
    assert first.returncode == 1
    assert "4 done, 2 failed, 2 left out" in first.stdout
    failed = [line for line in first.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2 and all("train_base/oxford_pets" in line for line in failed)
    told = " ".join(first.stdout.split())  # lines are folded to 80 columns
    line = re.search(r"\] DePT_CoOp image_folder .* seed 1\|2: ([\d., ]+) \(", told)
    results = [json.loads(path.read_text()) for path in output.rglob("result.json")]
    assert {result["side_by_side"] for result in results if result["classes"] == "base"} == {2}
    results.sort(key=lambda result: (result["classes"], result["seed"]))
    assert line[1].split(", ") == [f"{result['accuracy']:.2f}" for result in results]


def test_the_same_command_again_repeats_nothing_that_is_complete(first, command, output, python):
    before = {path: path.stat().st_mtime_ns for path in output.rglob("result.json")}
    again = script("run_protocol.py", *command, python=python)
    assert "was complete" in again.stdout and "4 skipped, 2 failed" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in output.rglob("result.json")} == before


def test_dry_run_prints_the_commands(first, command, python):
    done = script("run_protocol.py", *command, "--dry-run", python=python)
    commands = done.stdout.splitlines()
    assert [line.startswith("# complete: python train.py") for line in commands].count(True) == 4
    assert len(commands) == 8 and all("--trainer DePT_CoOp" in line for line in commands)


def test_tables_and_report(first, output, tmp_path):
    page, plots = tmp_path / "report.html", tmp_path / "plots"
    answer = script("parse_results.py", output, "--html", page, "--plots", plots)
    assert answer.returncode == 0 and "image_folder" in answer.stdout
    text = page.read_text()
    for title in ("Base against new", "H per data set", "Learning curves", "Calibration"):
        assert f">{title}</h2>" in text
    assert not re.findall(r'(?:src|srcset)="', text)
    links = re.findall(r'<a href="([^"#]+)"', text)
    assert links and all((tmp_path / unquote(link)).exists() for link in links)
    assert "oxford_pets" in text  # what failed is told there too
    assert {path.name for path in plots.iterdir()} == {
        f"{name}.{kind}"
        for name in ("base_new", "datasets", "curves", "confusion", "calibration")
        for kind in ("png", "pdf")
    }

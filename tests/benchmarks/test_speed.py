"""The benchmark runs on tiny towers, and what it compares is equal."""

import json
import subprocess
import sys
from functools import cache

import pytest

from benchmarks import process_timing, speed, timing
from benchmarks.method_setup import MethodSetup, Settings, images, method_names
from dassl.utils import UserError
from tests.registered import some_twins, trains

TINY = ("--backbone", "tiny", "--classes", "3", "--repeats", "1", "--images", "2")


@pytest.fixture(scope="module")
def machine_once():
    """What is said of the machine is measured for all methods together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed.timing, "onednn_ratios", cache(timing.onednn_ratios))
        patch.setattr(speed.timing, "matmul_gflops", cache(timing.matmul_gflops))
        yield


@pytest.mark.usefixtures("machine_once")
@pytest.mark.parametrize("name", some_twins(method_names()))
def test_every_method_is_measured_beside_the_plain_path(name):
    parts = ("--only", "steps", "evaluation", "--test-batch", "5")
    (row,) = speed.main([*TINY, *parts, "--methods", name])["rows"]
    assert ("step" in row) == trains(name)
    assert row["logit_difference"] < 1e-3
    for part in ("step", "step_with_views") if trains(name) else ():
        assert row[part]["ratio"] == row[part]["plain"] / row[part]["fast"] > 0
    if trains(name):
        assert row["loss_difference"] < 1e-3
        assert row["gflop"]["plain"] > row["gflop"]["fast"] > 0


def test_peak_memory_json_and_plot(tmp_path, capsys):
    files = ("--json", str(tmp_path / "speed.json"), "--plot", str(tmp_path / "speed.png"))
    speed.main([*TINY, "--only", "memory", "steps", "--methods", "DePT_CoOp", *files, "--markdown"])
    (row,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert row["memory"]["plain"] > 50
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    ratio = f"{row['step']['ratio']:.1f}"
    printed = capsys.readouterr().out
    assert "| method | step | … with views | memory | floor |\n| --- | ---: |" in printed
    assert f"| DePT_CoOp | {ratio} |" in printed


def test_memory_of_the_fast_path_alone(tmp_path, capsys):
    alone = ["--methods", "CoOp", "--fast-alone", "--only", "memory"]
    (row,) = speed.main([*TINY, *alone, "--plot", str(tmp_path / "speed.png")])["rows"]
    assert row["memory"]["plain"] is None and row["memory"]["fast"] > 50
    assert "→" not in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(UserError, match="--only memory"):
        speed.main([*TINY, *alone, "steps"])


def test_whole_runs(monkeypatch):
    """What is timed is what is said to be; the times themselves are made up here."""
    commands = []

    def python(*words):
        commands.append(" ".join(words))
        return 6.0 if "MODEL.FAST False" in commands[-1] else 3.0

    monkeypatch.setattr(process_timing, "_python", python)
    only = ["--only", "runs", "--methods", "DePT_CoOp", "ZeroshotCLIP", "--repeats", "1"]
    result = speed.main([*TINY, *only])
    assert set(result["start_up"]) == {"train.py --help", "first step"}
    assert [row["run"]["ratio"] for row in result["rows"]] == [2.0, 2.0]
    assert [row["seeds"]["ratio"] for row in result["rows"]] == [3.0, 3.0]
    mine = [command for command in commands if "--trainer DePT_CoOp" in command]
    assert [command.split("--seed ")[1].split(" --")[0] for command in mine] == [
        *("1", "1", "1"),  # the data are drawn; plain; fast
        *("1", "2", "3", "1 2 3"),
    ]
    assert all("--no-cache" in command for command in mine)


def test_plain_path_encodes_the_text_at_every_batch():
    """Otherwise the comparison would flatter nobody, and measure nothing."""
    settings = Settings("CoOp", "tiny", classes=2)
    model = settings.model()
    calls = []
    for fast in (True, False):
        setup = MethodSetup(settings, model, fast)
        forward = setup.method.encoders.text.forward
        setup.method.encoders.text.forward = lambda *a, f=forward: calls.append(1) or f(*a)
        features = setup.encode(images(2, model))
        setup.score(features, fresh=True)
        setup.score(features, fresh=True)
        setup.score(features, fresh=False)
        assert len(calls) == 2
        calls.clear()


def test_mistakes_are_one_line():
    for wrong in (["--methods", "CoOops"], ["--classes", "0"], ["--sideways"]):
        with pytest.raises(UserError):
            speed.main([*TINY, *wrong])
    script = [sys.executable, speed.__file__, "--backbone", "ViT-Z/1"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown backbone 'ViT-Z/1'")


def test_scaling(capsys):
    result = speed.main([*TINY, "--only", "steps", "evaluation", "--methods", "CoOp", "--full"])
    rows = {row["method"]: row for row in result["scaling"]}
    assert [rows[f"classes {n}"]["classes"] for n in (10, 50, 200)] == [10, 50, 200]
    assert [rows[f"batch {n}"]["batch"] for n in (1, 8, 32)] == [1, 8, 32]
    floor = [rows[f"classes {n}"]["gflop"] for n in (10, 50, 200)]
    assert floor[0]["fast"] < floor[1]["fast"] < floor[2]["fast"]
    assert rows["tested 10,000"]["images"] == 10_000
    assert "classes 200" in capsys.readouterr().out

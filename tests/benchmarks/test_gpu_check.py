"""The command for a GPU: tried without one, on tiny towers."""

import json
import subprocess

import pytest
import torch

from benchmarks import gpu_check, gpu_suite
from dassl.utils import UserError
from experiments.protocols import PROTOCOLS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU: run the command itself")


def test_every_part(tmp_path, capsys, monkeypatch, python):
    ran = []

    def pytest_alone(command, **options):
        """The tests are run elsewhere."""
        if "pytest" in command:
            ran.extend(word for word in command if word.startswith("tests/"))
            return subprocess.CompletedProcess(command, 0, "3 passed\n", "")
        return run([python if word == gpu_suite.sys.executable else word for word in command])

    def run(command):
        return call(command, cwd=gpu_suite.REPO, capture_output=True, text=True)

    call = subprocess.run
    monkeypatch.setattr(subprocess, "run", pytest_alone)
    words = ["--cpu", "--output", str(tmp_path), "--repeats", "1", "--datasets", "oxford_pets"]
    names = ["--methods", "DePT_CoOp", "MaPLe", "ZeroshotCLIP"]
    result = gpu_check.main([*words, *names])
    assert ran == ["tests/tuning/test_cuda_graphs.py"] and result["tests"]["passed"]
    rows = {row["method"]: row for row in result["methods"]}
    for name in ("DePT_CoOp", "MaPLe"):
        assert rows[name]["eager"][0] > 0 and "remark" not in rows[name]
    assert rows["ZeroshotCLIP"]["remark"] == "nothing to train"
    (row,) = result["suite"]["data_sets"]
    assert (row["classes"], row["training"], row["tested"]) == (4, 8, 8)
    assert row["base_s"] > 0 and row["new_s"] > 0 and "remark" not in row
    assert len(result["profile"]["kernels"]) == 10
    kept = json.loads((tmp_path / "gpu_check.json").read_text())
    assert kept["suite"] == result["suite"] and kept.keys() == result.keys()
    page = (tmp_path / "gpu_check.md").read_text()
    assert page in capsys.readouterr().out and "| DePT_CoOp | fp32 |" in page
    assert not list(tmp_path.glob("suite-*"))


def test_the_suite_has_the_eleven_data_sets_numbers():
    sizes = {name: gpu_suite.sizes_of(name) for name in PROTOCOLS["base_to_new"].datasets}
    assert len(sizes) == 11
    assert sizes["imagenet"] == {"classes": 1000, "training": 16000, "tested": 50000}


def test_without_a_gpu_it_says_so_in_a_line():
    with pytest.raises(UserError, match="gpu_check needs a GPU"):
        gpu_check.main([])


def test_a_method_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    from benchmarks import gpu_steps

    measured = gpu_steps._measured

    def fails(settings, *rest):
        if settings.trainer == "CoOp":
            raise RuntimeError("no kernel image\nand more")
        return measured(settings, *rest)

    monkeypatch.setattr(gpu_steps, "_measured", fails)
    words = ["--cpu", "--output", str(tmp_path), "--repeats", "1", "--only", "methods"]
    result = gpu_check.main([*words, "--methods", "CoOp", "KgCoOp"])
    assert "no kernel image" in result["methods"][0]["remark"]
    assert result["methods"][1]["eager"][0] > 0

"""The benchmark of bf16 beside fp32: whole runs, and one line where it can't."""

import pytest

from benchmarks import precision
from dassl.utils import UserError


def test_a_row_per_method(tmp_path, capsys, monkeypatch, python):
    monkeypatch.setattr(precision.sys, "executable", python)
    options = ("OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "1", "TRAINER.COOP.N_CTX", "2")
    words = ["--root", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--seeds", "1"]
    precision.main([*words, "--methods", "CoOp", "--set", *options])
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert row[:2] == ["CoOp", "1"]
    assert float(row[4]) == pytest.approx(abs(float(row[2]) - float(row[3])), abs=0.02)
    with pytest.raises(UserError, match="ended with status 2"):
        precision.main([*words, "--methods", "CoOp", "--set", "OPTIM.NO_SUCH", "1"])

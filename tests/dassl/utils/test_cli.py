"""What the command line's scripts have in common."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "script",
    [
        "train.py",
        "predict.py",
        "scripts/run_protocol.py",
        "scripts/parse_results.py",
        "scripts/status.py",
    ],
)
def test_help_and_mistakes_need_no_torch(script):
    for words, status in (("--help", 0), ("--mistake", 2)):
        command = [sys.executable, "-X", "importtime", script, words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == status
        imported = re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE)
        assert "argparse" in imported and "torch" not in imported

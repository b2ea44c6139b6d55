"""scripts/env.sh: which interpreter a command ends up with. Small stand-in wheels, no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ASK = 'set -euo pipefail; source scripts/env.sh; echo "PYTHON=$PYTHON"'


def make_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the set-up script alone, and a shelf of wheels that stands in for PyPI."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "shelf").mkdir()
    shutil.copy(SCRIPTS / "env.sh", tmp_path / "scripts")
    make_wheel(tmp_path / "shelf", "standin", "1.0")
    return tmp_path


def ask(clone: Path, path: str | None = None, wait: bool = True, **env: str):
    """Start the question; returns the finished process, or the running one with wait=False."""
    settings = {"PATH": path or os.environ["PATH"], "HOME": str(clone), **env}
    settings |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(clone / "shelf")}
    settings["PIP_CONFIG_FILE"] = os.devnull
    process = subprocess.Popen(
        ["bash", "-c", ASK],
        cwd=clone,
        env=settings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return finish(process) if wait else process


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_active_environment_that_satisfies_is_used(clone):
    (clone / "requirements.txt").write_text("pytest>=8.0  # a comment\n")
    answer = ask(clone, PYTHON=sys.executable)
    assert answer.stdout.strip() == f"PYTHON={sys.executable}"
    assert not (clone / ".venv").exists()


def test_venv_is_made_once_reused_updated_and_remade_when_half_made(clone):
    (clone / "requirements.txt").write_text("standin>=1.0\n")
    at_once = [ask(clone, wait=False) for _ in range(2)]
    answers = [finish(process) for process in at_once]
    expected = f"PYTHON={clone}/.venv/bin/python"
    assert [a.stdout.strip() for a in answers] == [expected] * 2, answers
    assert sorted("Making .venv" in a.stderr for a in answers) == [False, True]

    reused = ask(clone)
    assert (reused.stdout.strip(), reused.stderr) == (expected, "")

    make_wheel(clone / "shelf", "standin", "2.0")
    (clone / "requirements.txt").write_text("standin>=2.0\n")
    updated = ask(clone)
    assert "up to date" in updated.stderr and updated.stdout.strip() == expected

    (clone / ".venv/unfinished").touch()
    remade = ask(clone)
    assert "Making .venv" in remade.stderr and remade.stdout.strip() == expected
    assert not (clone / ".venv/unfinished").exists()

    # A failed installation leaves a mark that the next start sees.
    (clone / "requirements.txt").write_text("nowhere-to-be-found\n")
    failed = ask(clone)
    assert failed.returncode == 2 and failed.stderr.splitlines()[-1].startswith("error: pip")
    assert (clone / ".venv/unfinished").exists()


def test_what_could_be_fetched_does_not_satisfy(clone):
    """A shelf that has the package: it still has to be installed, into .venv."""
    (clone / "requirements.txt").write_text("pytest>=8.0\nstandin>=1.0\n")
    python = clone / "python"  # all of Python, but for environments
    python.write_text(f'#!/bin/sh\n[ "$2" != venv ] && exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    answer = ask(clone, PYTHON=str(python))
    assert answer.returncode == 2 and "can't make a virtual environment" in answer.stderr


@pytest.mark.parametrize("old", [True, False])
def test_no_usable_python_is_one_line(clone, old):
    (clone / "requirements.txt").write_text("standin\n")
    fake = clone / "bin"
    fake.mkdir()
    for tool in ("dirname", "cat", "flock", "bash"):
        (fake / tool).symlink_to(shutil.which(tool))
    # Answers every question but "make an environment"; or fails at all of them, as an old one does.
    works = "false" if old else '[[ "$1" == -c ]]'
    (fake / "python3").write_text(f"#!{shutil.which('bash')}\n{works}\n")
    (fake / "python3").chmod(0o755)
    answer = ask(clone, path=str(fake))
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith("error: ")
    assert ("no Python 3.10" if old else "python3-venv") in answer.stderr
    assert answer.stdout == ""

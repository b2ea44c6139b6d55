"""The commands of README.md and docs/reproduce.md do what they say, shown on the mini world.

Usually as plans; with RUN_DOCS=1 in the environment every protocol is really run (half an hour).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import analyze, parse_results
from scripts.protocols import PROTOCOLS
from scripts.run_protocol import make_plan, parse_args

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/reproduce.md")
TARGETS = {
    "cross_dataset": ["mini_fabrics", "mini_scenes"],
    "domain_generalization": ["mini_shapes_sketch", "mini_shapes_night"],
}


def commands(script: str) -> list[list[str]]:
    """Return the arguments of each call of a script in a code block of the pages."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.replace("…", "X"), comments=True)
                if any(word.endswith(script) for word in words):
                    place = next(i for i, word in enumerate(words) if word.endswith(script))
                    found.append(words[place + 1 :])
    return found


def on_mini_world(arguments: list[str], tmp_path: Path) -> list[str]:
    protocol = arguments[0]
    return [
        *arguments,
        *("--datasets", *TARGETS.get(protocol, ["mini_shapes"]), "--source", "mini_shapes"),
        *("--root", os.environ.get("DATA", str(tmp_path)), "--output", str(tmp_path / "output")),
    ]


def test_every_protocol_has_its_command():
    assert {arguments[0] for arguments in commands("run_protocol.py")} == set(PROTOCOLS)


@pytest.mark.parametrize("arguments", commands("run_protocol.py"), ids=" ".join)
def test_protocols(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = on_mini_world(arguments, tmp_path)
    assert make_plan(parse_args(arguments))
    if os.environ.get("RUN_DOCS"):
        command = [sys.executable, "scripts/run_protocol.py", *arguments]
        assert subprocess.run(command, cwd=ROOT).returncode == 0
        command = [sys.executable, "scripts/parse_results.py", str(tmp_path / "output")]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert answer.returncode == 0 and "mini_shapes" in answer.stdout


@pytest.mark.parametrize("module", [parse_results, analyze])
def test_tables_and_analyses_take_the_options_that_the_pages_use(module, monkeypatch):
    found = commands(f"{module.__name__.rpartition('.')[2]}.py")
    assert found
    for arguments in found:
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        module.parse_args()


def test_folders_that_the_pages_name_are_those_of_the_plans(monkeypatch):
    monkeypatch.chdir(ROOT)
    named = {Path(word) for words in commands("analyze.py") for word in words if "seed" in word}
    planned = {
        job.folder
        for arguments in commands("run_protocol.py")
        if "eurosat" in arguments
        for chain in make_plan(parse_args(arguments))
        for job in chain.jobs
    }
    assert named and named <= planned


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_pages_name_exist(page):
    text = (ROOT / page).read_text()
    linked = re.findall(r"\]\(([\w./-]+)\)", text)
    named = re.findall(r"(?:scripts|docs|configs|tests|trainers)/[\w/]+\.(?:py|sh|md|yaml)", text)
    for path in linked:
        assert ((ROOT / page).parent / path).is_file(), path
    for path in named:
        assert (ROOT / path).is_file(), path

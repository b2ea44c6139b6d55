"""The picture of a plan on a terminal: what it says, and that it fits."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments.watching.epochs import Epochs
from experiments.watching.standing import DONE, FAILED, RUNNING, WAITING, Run, Standing
from experiments.watching.view import picture_of

ROOT = Path(__file__).resolve().parents[3]


def plan(kinds: int = 2, failures: int = 1, going: int = 2) -> Standing:
    runs = []
    for i in range(kinds):
        place = f"base2new/train_base/mini_shapes/shots_16/DePT_Trainer{i}/mini/seed"
        chain = f"DePT_Trainer{i} mini_shapes 16 shots seed 1|2|3"
        runs.append(Run(place + "1", chain, DONE, accuracy=71.25, seconds=30.0))
        runs += [
            Run(
                f"{place}{seed}",
                chain,
                RUNNING if i < going else WAITING,
                since=900.0,
                together=2,
                epochs=Epochs(3, 50, 1.234, 960.0, 20.0),
            )
            for seed in (2, 3)
        ]
    for i in range(failures):
        place = f"base2new/train_base/mini_scenes/shots_16/DePT_Trainer0/mini/seed{i}"
        runs.append(Run(place, "chain", FAILED, reason="RuntimeError: " + "no luck " * 20))
    return Standing("base_to_new", "", runs, [], 1000.0, at_once=2)


def drawn(standing: Standing, width: int, height: int | None) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, height=height or 100, force_terminal=False)
    console.print(picture_of(standing, width, height))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_what_it_says():
    head, *rest = drawn(plan(), 100, 30)
    assert "to go" in " ".join(drawn(plan(), 50, 30)[:2])
    assert head.startswith("base_to_new: 2 of 7 runs complete, 4 under way, 1 failed; about ")
    text = "\n".join(rest)
    assert "kind" in rest[0] and rest[1].split()[:5] == [
        "DePT_Trainer0",
        "train_base",
        "1/4",
        "1",
        "71.25",
    ]
    going = next(line for line in rest if "train 2" in line)
    assert "DePT_Trainer0 mini_shapes 16 shots seed 1|2|3: train 2" in going
    assert going.split()[-4:] == ["3/50", "1.23", "100", "s"] or going.endswith("2 min")
    assert "failed: base2new/train_base/mini_scenes" in text and "RuntimeError: no luck" in text


@pytest.mark.parametrize("width", [30, 50, 78, 200])
@pytest.mark.parametrize("height", [8, 12, 24, 60])
@pytest.mark.parametrize("size", [(1, 0, 0), (2, 1, 2), (40, 30, 12)])
def test_it_is_never_wider_or_higher_than_the_terminal(width, height, size):
    lines = drawn(plan(*size), width, height)
    assert max(map(len, lines)) <= width and len(lines) < height


def test_where_there_is_no_room_for_all_what_is_complete_goes_first():
    standing = plan(40, 0, 1)
    assert any("more kinds" in line for line in drawn(standing, 80, 24))
    assert not any("more kinds" in line for line in drawn(standing, 80, None))
    assert "and 27 more that failed" in drawn(plan(2, 30), 80, 40)[-1]


def test_nothing_is_shown_of_what_is_not_known():
    run = Run("base2new/train_base/dtd/shots_16/CoOp/mini/seed1", "chain", WAITING)
    lines = drawn(Standing("plan", "", [run], [], 0.0, at_once=1), 80, 24)
    assert lines[0] == "plan: 0 of 1 runs complete, 1 to come"
    assert lines[2].split() == ["CoOp", "train_base", "0/1"]


def test_a_whole_picture_says_whole_reasons():
    assert sum(line.count("luck") for line in drawn(plan(), 80, None)) == 20


SHOWN = """\
import sys, time
from dassl.utils import heed_signals, user_errors
from experiments.watching.view import live_view
from tests.experiments.watching.test_view import plan
heed_signals()
with user_errors(), live_view(lambda: [plan()], 0.05):
    print("a line above")
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_the_terminal_as_it_was(number):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SHOWN],
        cwd=ROOT,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while seen.count(b"under way  ") < 3:  # drawn again and again
        seen += os.read(ours, 4096)
    process.send_signal(number)
    try:
        while part := os.read(ours, 4096):
            seen += part
    except OSError:  # closed
        pass
    os.close(ours)
    assert process.wait(60) == (130 if number == signal.SIGINT else 143)
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")  # the cursor is shown again
    assert b"a line above" in seen and b"\x1b[3" not in seen  # no colors

"""Lines that fit a terminal."""

from __future__ import annotations

import io

import pytest

from experiments.watching.lines import (
    cells,
    duration,
    fold,
    is_live,
    say,
    shorten,
    told_to_go,
)

PATH = "/a/rather/long/folder/of/somebody/base2new/train_base/mini_shapes/shots_16/CoOp/mini/seed1"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_breaks_at_spaces_and_a_path_behind_a_slash():
    text = f"  failed: {PATH}: no such file (45 s); about 3 min to go"
    folded = fold(text, 60)
    assert all(cells(line) <= 60 for line in folded.splitlines())
    assert folded.startswith("  failed: /a/rather") and "/\n    train_base" in folded
    assert "(45 s);" in folded
    assert "".join(folded.split()) == "".join(text.split())
    assert fold("short") == "short"
    assert fold("x" * 100, 40, "") == "\n".join(["x" * 40, "x" * 40, "x" * 20])


def test_without_cutting_a_word_stays_whole_on_a_line_of_its_own():
    assert fold(f"failed: {PATH}: why", 60, cut=False).splitlines()[1].strip() == f"{PATH}:"


def test_wide_characters_take_two_columns():
    assert cells("猫 é") == 4 and cells("e\N{COMBINING ACUTE ACCENT}") == 1
    assert fold("猫猫 猫猫", 5, "") == "猫猫\n猫猫"


@pytest.mark.parametrize("width", [1, 2, 3, 10, 59])
def test_of_a_long_name_both_ends_are_kept(width):
    short = shorten("DePT_CoOp mini_shapes 16 shots seed 1|2|3 and some more words", width)
    assert cells(short) <= width and "…" in short
    assert shorten("猫" * 9, 9) == "猫猫…猫猫"
    assert shorten("as it is", 8) == "as it is"


def test_say_folds_to_eighty_columns_and_keeps_paths_whole_but_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    pipe, terminal = io.StringIO(), Terminal()
    for stream in (pipe, terminal):
        say(f"failed: {PATH}", stream)
    assert PATH in pipe.getvalue()
    assert max(map(len, terminal.getvalue().splitlines())) <= 40


def test_times_to_go():
    assert [duration(s) for s in (45.4, 720, 12_000)] == ["45 s", "12 min", "3 h 20 min"]
    assert told_to_go(0.0, True) == ""
    assert told_to_go(720, False) == "; about 12 min to go"
    assert told_to_go(720, True) == "; at least 12 min to go"


def test_only_a_terminal_that_can_move_its_cursor_is_live(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert is_live(Terminal()) and not is_live(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live(Terminal())

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import whole_protocols
from benchmarks.whole_protocols import CASES, main
from dassl.utils import UserError


@pytest.fixture
def calls(monkeypatch) -> list[tuple[Path, list[str]]]:
    """What is run; a stand-in leaves a result, and another one for a checkout called `wrong`."""
    made: list[tuple[Path, list[str]]] = []

    def run(command, cwd, **options):
        made.append((cwd, command[3:]))
        folder = Path(command[command.index("--output") + 1]) / "run"
        folder.mkdir(parents=True)
        accuracy = 50.0 if cwd.name != "wrong" else 51.0
        (folder / "result.json").write_text(json.dumps({"accuracy": accuracy}))
        if cwd.name == "more":
            (folder / "second").mkdir()
            (folder / "second" / "result.json").write_text(json.dumps({"accuracy": 1.0}))
        status = int(cwd.name == "broken")
        return SimpleNamespace(returncode=status, stderr="a\nwhy\n", stdout="")

    monkeypatch.setattr(whole_protocols.subprocess, "run", run)
    return made


def test_ways_go_in_turns_and_are_compared(calls, tmp_path, capsys):
    result = main(["--only", "start-ups", "--repeats", "2", "--json", str(tmp_path / "x.json")])
    assert ["--process-per-run" in words for _, words in calls] == [True, False] * 2
    assert all(tuple(words[-len(CASES["start-ups"]) :]) == CASES["start-ups"] for _, words in calls)
    (row,) = result["rows"]
    assert (
        row["equal"]
        and row["runs"] == 1
        and list(row["seconds"])
        == [
            "a process per run",
            "workers",
        ]
    )
    assert json.loads((tmp_path / "x.json").read_text()) == result
    assert "same results" in capsys.readouterr().out


def test_another_checkout_comes_first_and_other_results_are_said(calls, tmp_path, capsys):
    (tmp_path / "wrong").mkdir()
    main(["--only", "quick start", "--before", str(tmp_path / "wrong")])
    assert [code.name for code, _ in calls][0] == "wrong" and len(calls) == 3
    assert "OTHER RESULTS" in capsys.readouterr().out
    with pytest.raises(UserError, match="failed: why"):
        main(["--only", "quick start", "--before", str(tmp_path / "broken")])


def test_some_ways_alone(calls, tmp_path):
    older = tmp_path / "older"
    older.mkdir()
    main(["--only", "quick start", "--before", str(older), "--ways", "before", "workers"])
    assert [code.name == "older" for code, _ in calls] == [True, False]
    with pytest.raises(UserError, match="needs --before"):
        main(["--ways", "before"])


def test_runs_that_one_way_does_without_are_said(calls, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    main(["--only", "quick start", "--before", str(tmp_path / "more")])
    assert "2 runs" in (said := capsys.readouterr().out)
    assert "same results of the 1 that all have" in said

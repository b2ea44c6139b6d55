"""docs/methods.md has a row for each registered method, and says what the registry says."""

from __future__ import annotations

import pytest

from benchmarks import methods as page
from benchmarks.method_setup import Settings
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from dassl.utils.cli import escape_markdown
from tests.registered import every_trainer, trains
from tuning.naming import is_wrapped

AGAIN = "run python benchmarks/methods.py"


def rows() -> dict[str, list[str]]:
    """The page's rows by method."""
    text = page.PAGE.read_text(encoding="utf-8")
    table = text.partition(page.BEGIN)[2].partition(page.END)[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == page.HEAD
    return {row[0]: row for row in cells[2:]}


def test_every_method_has_its_row():
    registered = [
        name
        for name in every_trainer()
        if not is_wrapped(name) and TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
    ]
    assert sorted(rows()) == sorted(registered) == sorted(page.methods()), AGAIN


def test_rows_say_what_the_registry_says():
    for name, row in rows().items():
        told = page.plain(name)
        sees = escape_markdown(f"[{told.sees}]") if told.sees else ""
        assert told.paper, f"the head of {name}'s file names no paper"
        assert (row[1], row[4], row[5], row[7]) == (told.paper, sees, told.dept, told.command), (
            AGAIN
        )
        assert (row[2] == "nothing") != trains(name), AGAIN


def test_costs_are_of_methods_that_train():
    found = [name for of in page.costs().values() for name in of]
    assert len(set(found)) == len(found) and all(trains(name) for name in found)
    assert set(found) <= set(page.methods())


@pytest.fixture(scope="module")
def model():
    return Settings("CoOp").model()


@pytest.mark.parametrize(
    ("name", "number", "reach"),
    [
        ("CoOp", "8,192", "text: context"),  # 16 vectors of 512
        ("VPT", "73,728", "image: tokens 0–11"),  # 12 layers, 8 vectors of 768
        ("TipAdapterF", "512 n", ""),
        ("LPpp", "514 C", ""),  # a weight of 512, a bias and an α
    ],
)
def test_counts_and_places_on_vit_b16(model, name, number, reach):
    assert page.number_trained(name, model) == number
    assert page.reached(name, model) == reach
    assert rows()[name][2:4] == [number, reach or "neither"], AGAIN


def test_numbers_in_stretches():
    assert page.ranges({3, 0, 1, 2, 7}) == "0–3, 7" and page.ranges([]) == ""


def test_measuring_and_writing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "COSTS", tmp_path / "costs.json")
    monkeypatch.setattr(page, "PAGE", tmp_path / "methods.md")
    monkeypatch.setattr(page, "methods", lambda: ["CoOp", "LPpp", "ZeroshotCLIP"])
    tiny = Settings("CoOp", backbone="tiny")
    monkeypatch.setattr(page, "Settings", lambda name, **more: tiny)
    model = tiny.model()
    settings = Settings("CoOp", backbone="tiny", batch=2, classes=3)
    found = dict(page.measured(["CoOp", "LPpp", "ZeroshotCLIP"], model, settings, repeats=1))
    assert set(found) == {"CoOp", "LPpp"} and all(value > 0 for value in found.values())
    page.keep(found)
    page.keep({"LPpp": 0.5})
    assert page.costs() == {page.machine(): {"CoOp": found["CoOp"], "LPpp": 0.5}}
    with pytest.raises(SystemExit):
        page.main(["--measure", "CoOpp"])
    assert "no method CoOpp (did you mean 'CoOp'?)" in capsys.readouterr().err
    page.PAGE.write_text("Nothing here")
    with pytest.raises(UserError, match="has no lines"):
        page.write("| a |")
    page.PAGE.write_text(f"Before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write(page.table([page.row("LPpp", "514 C", "")]))
    text = page.PAGE.read_text()
    assert text.startswith("Before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| LPpp |" in text and "| 0.50 |" in text and f"Measured on: {page.machine()}" in text

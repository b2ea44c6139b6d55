"""Imports point one way, files stand in no circle, and the documents' picture and walks are so."""

from __future__ import annotations

import re

import pytest

from experiments import architecture
from experiments.architecture import EXCEPTIONS, ROOT, arrows, circle, imports, upward

DOCUMENT = ROOT / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def graph():
    return imports(deferred=True)


def test_imports_point_down(graph):
    assert set(upward(graph)) <= set(EXCEPTIONS)
    assert all(other in graph[module] for module, other in EXCEPTIONS), "no longer needed"


def test_no_circle(graph):
    assert circle(imports()) == []
    for module, other in EXCEPTIONS:
        graph = {**graph, module: graph[module] - {other}}
    assert circle(graph) == []


def test_a_circle_and_an_import_upwards_are_found(tmp_path):
    for path, text in {
        "clip/__init__.py": "",
        "clip/a.py": "from . import b\nimport trainers.x",
        "clip/b.py": "from typing import TYPE_CHECKING\nfrom clip.a import name",
        "clip/c.py": "def f():\n    from .a import name",
        "clip/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import clip.c",
        "trainers/x.py": "",
        "train.py": "import clip.a",
        "predict.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    graph = imports(tmp_path)
    assert graph["clip.a"] == {"clip.b", "trainers.x"}
    assert graph["clip.c"] == graph["clip.d"] == set()
    assert imports(tmp_path, deferred=True)["clip.c"] == {"clip.a"}
    assert set(circle(graph)) == {"clip.a", "clip.b"}
    assert upward(graph) == [("clip.a", "trainers.x")]


def test_arrows_leave_out_what_others_imply():
    rooms = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert set(arrows(rooms)) == {("a", "b"), ("b", "c")}


def test_the_picture_is_drawn(tmp_path, capsys):
    assert architecture.main(["--out", str(tmp_path / "x.png")]) == 0
    assert "no import upwards" in capsys.readouterr().out
    shipped = ROOT / "docs" / "images" / "architecture.png"
    for path in (tmp_path / "x.png", shipped):
        assert 10_000 < path.stat().st_size < 200_000


def test_walks_name_files_once_and_only_what_exists():
    walks = DOCUMENT.read_text().split("\n## ")[1:]
    assert len(walks) == 3
    for walk in walks:
        named = re.findall(r"^\d+\. `([^`]+)`", walk, re.MULTILINE)
        assert len(named) >= 5 and len(set(named)) == len(named)
        assert all((ROOT / name).is_file() for name in named)

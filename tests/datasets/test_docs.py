"""docs/datasets.md says what the code has."""

import math
import re
from pathlib import Path

import datasets  # noqa: F401 - registers the readers
from dassl.data.datasets import DATASET_REGISTRY
from datasets.preparation.sources import SOURCES

TEXT = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")


def numbers(cell: str) -> list[int]:
    return [int(n.replace(",", "")) for n in re.findall(r"[\d,]+", cell)]


def test_table():
    rows = {}
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 9:
            rows[cells[0]] = cells
    assert set(SOURCES) <= set(rows)
    for name, source in SOURCES.items():
        reader = DATASET_REGISTRY.get(name)
        _, config, classes, train, val, test, folder, licence, home = rows[name]
        base = math.ceil(reader.sizes[0] / 2)
        assert config == f"`{reader.__module__.rpartition('.')[2]}`"
        assert numbers(classes) == [reader.sizes[0], base, reader.sizes[0] - base]
        for cell, size in zip((train, val, test), reader.sizes[1:], strict=True):
            assert numbers(cell) == ([size] if size else [])
        assert folder == f"`{reader.dataset_dir}/`"
        assert licence == source.licence
        assert source.homepage.split(" ")[0] in home


def test_layouts_name_every_folder_and_split_file():
    layout = TEXT[TEXT.index("DATA/\n") :]
    for name in SOURCES:
        reader = DATASET_REGISTRY.get(name)
        line = next(li for li in layout.splitlines() if li.strip().startswith(reader.dataset_dir))
        assert reader.split_file in line
        assert reader.image_dir.split("/")[0] in line

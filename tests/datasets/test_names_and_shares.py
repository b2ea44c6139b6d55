"""What the readers are called, where they look, how they name classes; shares of drawn splits."""

from __future__ import annotations

import itertools
import json
import random

import pytest

import datasets  # noqa: F401 - registers the readers
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, Datum, build_dataset
from datasets import splits
from datasets.annotations import rows_hash, seeded
from datasets.caltech101 import Caltech101
from datasets.eurosat import EuroSAT
from datasets.preparation import fewshot_samples
from tests.datasets.layouts import image

# Folder, folder of images, split file; classes, train, val, test as published.
WHERE = {
    "Caltech101": ("caltech-101", "101_ObjectCategories", (100, 4128, 1649, 2465)),
    "DescribableTextures": ("dtd", "images", (47, 2820, 1128, 1692)),
    "EuroSAT": ("eurosat", "2750", (10, 13500, 5400, 8100)),
    "FGVCAircraft": ("fgvc_aircraft", "images", (100, 3334, 3333, 3333)),
    "Food101": ("food-101", "images", (101, 50500, 20200, 30300)),
    "ImageNet": ("imagenet", "", (1000, 1281167, 0, 50000)),
    "ImageNetA": ("imagenet-adversarial", "imagenet-a", (200, 0, 0, 7500)),
    "ImageNetR": ("imagenet-rendition", "imagenet-r", (200, 0, 0, 30000)),
    "ImageNetSketch": ("imagenet-sketch", "images", (1000, 0, 0, 50889)),
    "ImageNetV2": (
        *("imagenetv2", "imagenetv2-matched-frequency-format-val"),
        (1000, 0, 0, 10000),
    ),
    "OxfordFlowers": ("oxford_flowers", "jpg", (102, 4093, 1633, 2463)),
    "OxfordPets": ("oxford_pets", "images", (37, 2944, 736, 3669)),
    "StanfordCars": ("stanford_cars", "", (196, 6509, 1635, 8041)),
    "SUN397": ("sun397", "SUN397", (397, 15880, 3970, 19850)),
    "UCF101": ("ucf101", "UCF-101-midframes", (101, 7639, 1898, 3783)),
}
NO_SPLIT_FILE = {"FGVCAircraft", *(name for name in WHERE if name.startswith("ImageNet"))}


@pytest.mark.parametrize("name", WHERE)
def test_where_a_reader_looks(name):
    reader = DATASET_REGISTRY.get(name)
    folder, image_dir, sizes = WHERE[name]
    assert (reader.dataset_dir, reader.image_dir, reader.sizes) == (folder, image_dir, sizes)
    assert reader.split_file == ("" if name in NO_SPLIT_FILE else f"split_zhou_{name}.json")
    assert reader.listed_from_disk == name.startswith("ImageNet")


def test_renamed_classes():
    assert Caltech101.renamed == {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    }
    assert set(Caltech101.left_out) == {"BACKGROUND_Google", "Faces_easy"}
    assert EuroSAT.renamed == {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "River": "River",
        "SeaLake": "Sea or Lake",
    }


def items(*counts: int) -> list[Datum]:
    return [
        Datum(impath=f"{label}/{i}.jpg", label=label, classname=f"c{label}")
        for label, count in enumerate(counts)
        for i in range(count)
    ]


def labels(part) -> list[int]:
    return [item.label for item in part]


def test_shares_of_drawn_splits():
    random.seed(0)
    train, val, test = splits.split_class(items(10), "somewhere")
    assert (len(train), len(val), len(test)) == (5, 2, 3)
    drawn = splits.split_class(items(20), "x", p_trn=0.6, p_val=0.1)
    assert [len(part) for part in drawn] == [12, 2, 6]
    assert len({item.impath for part in drawn for item in part}) == 20
    train, val = splits.split_trainval(items(10, 5))
    assert labels(train) == [0] * 8 + [1] * 4 and labels(val) == [0, 0, 1]
    train, val = splits.split_trainval(items(10), p_val=0.5)
    assert (len(train), len(val)) == (5, 5)
    assert splits.SPLIT_SEED == 1 and splits.PARTS == ("train", "val", "test")


@pytest.mark.parametrize(
    ("classes", "base", "new"),
    [(4, [0, 1], [2, 3]), (5, [0, 1, 2], [3, 4]), (1, [0], []), (2, [0], [1])],
)
def test_halves_round_up_for_base(classes, base, new):
    every = items(*[2] * classes)
    for subsample, kept in (("base", base), ("new", new), ("all", base + new)):
        train, val = splits.subsample_classes(every, every[::-1], subsample=subsample)
        assert [item.classname for item in train] == [f"c{k}" for k in kept for _ in range(2)]
        assert labels(train) == [i for i in range(len(kept)) for _ in range(2)]
        assert labels(val) == labels(train)[::-1]


def test_gaps_are_closed_by_the_first_list_that_has_items():
    odd = [item for item in items(1, 1, 1, 1, 1, 1) if item.label in (1, 4, 5)]
    _, test = splits.subsample_classes([], odd, subsample="all")
    assert [(i.label, i.classname) for i in test] == [(0, "c1"), (1, "c4"), (2, "c5")]
    (new,) = splits.subsample_classes(odd, subsample="new")
    assert [(i.label, i.classname) for i in new] == [(0, "c5")]


def test_seeded_draws_leave_no_trace():
    random.seed(9)
    expected = random.Random(9).random()
    with seeded(4):
        assert random.random() == random.Random(4).random()
    with seeded(0):
        assert random.random() == random.Random(0).random()
    assert random.random() == expected
    random.seed(9)
    with seeded(-1):
        assert random.random() == expected
    assert random.random() != expected


def test_hashes_by_hand():
    import hashlib

    lists = {"train": [("a.jpg", 0, "cat")], "val": []}
    text = "train\na.jpg\t0\tcat\nval\n"
    assert rows_hash(lists) == hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def large_val(tmp_path):
    """OxfordPets with two classes of six training and six validation images."""
    folder = tmp_path / "oxford_pets"
    split = {
        part: [[f"{part}_{c}_{i}.jpg", c, "ab"[c]] for c in range(2) for i in range(6)]
        for part in ("train", "val", "test")
    }
    for row in itertools.chain(*split.values()):
        image(folder / "images" / row[0])
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
    return tmp_path


@pytest.mark.parametrize(("shots", "n_val"), [(1, 1), (3, 3), (4, 4), (5, 4), (6, 4), (16, 4)])
def test_no_more_than_four_validation_images_per_class(large_val, shots, n_val):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = "OxfordPets", str(large_val), shots
    cfg.SEED, cfg.VERBOSE = 1, False
    for _ in range(2):  # drawn, then read again
        data = build_dataset(cfg)
        assert sorted(labels(data.train_x)) == [c for c in range(2) for _ in range(min(shots, 6))]
        assert sorted(labels(data.val)) == [c for c in range(2) for _ in range(n_val)]
        assert len(data.test) == 12
    kept = large_val / "oxford_pets" / "split_fewshot" / f"shot_{shots}-seed_1.json"
    written = kept.stat().st_mtime_ns
    build_dataset(cfg)
    assert kept.stat().st_mtime_ns == written  # it fits, so it isn't drawn anew


def test_original_samples_have_four_validation_images_per_class(large_val, monkeypatch):
    rows = {
        part: [(f"{part}_{c}_{i}.jpg", c, "ab"[c]) for c in range(2) for i in range(n)]
        for part, n in (("train", 5), ("val", 4))
    }
    monkeypatch.setattr(fewshot_samples.fewshot_pickle, "read_sample", lambda path: rows)
    folder = large_val / "oxford_pets" / "split_fewshot"
    folder.mkdir()
    (folder / "shot_5-seed_1.pkl").touch()
    (path,) = fewshot_samples.convert(DATASET_REGISTRY.get("OxfordPets"), str(large_val))
    kept = json.loads(path.read_text())
    assert {part: [tuple(row) for row in kept[part]] for part in rows} == rows

"""Few-shot samples of the original code become JSON, and nothing in them is run."""

import json
import os
import pickle
import random
import sys
import types
from pathlib import Path

import pytest

import datasets  # noqa: F401 - registers the readers
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.utils import UserError
from datasets.preparation.fewshot_pickle import read_sample
from datasets.preparation.fewshot_samples import convert
from experiments import preparation_command as prepare_data
from tests.datasets.layouts import build, write_split

ELSEWHERE = "/home/someone/data/oxford_pets/images"


class Datum:
    """As the original has it: its attributes have a leading underscore."""

    def __init__(self, impath, label, classname):
        self._impath, self._label, self._domain = impath, label, 0
        self._classname = classname


@pytest.fixture(autouse=True)
def original_module(monkeypatch):
    """Pickles name the class by a module that is gone when they are read."""
    module = types.ModuleType("original_dassl")
    module.Datum = Datum
    monkeypatch.setattr(Datum, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def dump(path: Path, content, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    sys.modules.pop("original_dassl", None)
    return path


def original(rows: list, folder: str = ELSEWHERE) -> list[Datum]:
    return [Datum(f"{folder}/{path}", label, name) for path, label, name in rows]


@pytest.fixture
def sample(tmp_path):
    """A split, and a sample of two per class that no seed here draws, in its own order."""
    split = write_split(tmp_path, build("OxfordPets", tmp_path))
    chosen = {}
    for part in ("train", "val"):
        rows = [r for y in range(4) for r in [r for r in split[part] if r[1] == y][-2:]]
        random.Random(99).shuffle(rows)
        chosen[part] = rows
    return chosen


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("folder", [ELSEWHERE, "data/oxford_pets/images", r"D:\pets\images"])
def test_a_sample_is_converted_and_used(protocol, folder, sample, tmp_path):
    content = {part: original(rows, folder) for part, rows in sample.items()}
    pickled = tmp_path / "oxford_pets" / "split_fewshot" / "shot_2-seed_1.pkl"
    dump(pickled, content, protocol)
    assert prepare_data.main(["--convert-fewshot", "OxfordPets", "--root", str(tmp_path)]) == 0
    kept = json.loads(pickled.with_suffix(".json").read_text())
    assert {part: [tuple(row) for row in kept[part]] for part in sample} == sample

    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "OxfordPets", str(tmp_path)
    cfg.DATASET.NUM_SHOTS, cfg.SEED, cfg.VERBOSE = 2, 1, False
    data = build_dataset(cfg)
    assert [os.path.basename(item.impath) for item in data.train_x] == [
        row[0] for row in sample["train"]
    ]


def test_imagenet_has_training_images_only(tmp_path):
    expected = build("ImageNet", tmp_path)
    by_label = {label: path for path, label in expected.train}
    rows = [(path, label, expected.classnames[label]) for label, path in by_label.items()]
    folder = tmp_path / "imagenet" / "split_fewshot"
    dump(folder / "shot_1-seed_3.pkl", {"train": original(rows, "/x/imagenet/images")})
    (path,) = convert(DATASET_REGISTRY.get("ImageNet"), str(tmp_path))
    assert [tuple(row) for row in json.loads(path.read_text())["train"]] == rows


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


class EvilState(Datum):
    """Pickled as an object whose state is no dict."""

    def __getstate__(self):
        return ({}, {"_impath": "x"})


@pytest.mark.parametrize(
    "content",
    [
        Evil(os.system, "touch hacked"),
        {"train": [Evil(os.mkdir, "hacked")], "val": []},
        {"train": [Evil(eval, "open('hacked', 'w')")]},
        [1, 2],
        "text",
        {"train": 3, "val": []},
        {"train": ["a.jpg"], "val": []},
        {"train": [EvilState("a", 0, "a")]},
        {1: {2}},
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_anything_else_is_refused_and_not_run(content, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Evil, "__module__", __name__)
    monkeypatch.setattr(EvilState, "__module__", "original_dassl")
    sys.modules["original_dassl"].EvilState = EvilState
    path = dump(tmp_path / "shot_1-seed_1.pkl", content, protocol)
    with pytest.raises(UserError, match="not a few-shot sample"):
        read_sample(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_damaged_pickles_are_refused(tmp_path, sample):
    whole = dump(tmp_path / "a.pkl", {"train": original(sample["train"])}).read_bytes()
    rng = random.Random(3)
    path = tmp_path / "b.pkl"
    for data in [b"", b".", b"N.", b"}.", *(whole[:n] for n in range(0, len(whole), 37))]:
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"b\.pkl"):
            read_sample(path)
    for _ in range(300):  # one byte changed: it may still be a sample, but never breaks otherwise
        data = bytearray(whole)
        data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_sample(path)
        except UserError as error:
            assert "b.pkl" in str(error)


def change_image(rows):
    return [("cat_1.jpg", *rows[0][1:]), *rows[1:]]


def change_label(rows):
    return [(rows[0][0], (rows[0][1] + 1) % 4, rows[0][2]), *rows[1:]]


@pytest.mark.parametrize("change", [change_image, change_label, lambda rows: rows[1:]])
def test_a_sample_of_another_split_is_named(change, sample, tmp_path, capsys):
    content = {"train": original(change(sample["train"])), "val": original(sample["val"])}
    path = tmp_path / "oxford_pets" / "split_fewshot" / "shot_2-seed_1.pkl"
    dump(path, content)
    with pytest.raises(SystemExit) as ending:
        prepare_data.main(["--convert-fewshot", "OxfordPets", "--root", str(tmp_path)])
    assert ending.value.code == 2
    assert f"{path}, 'train'" in capsys.readouterr().err
    assert not path.with_suffix(".json").exists()


def test_nothing_to_convert(sample, tmp_path):
    with pytest.raises(UserError, match="split_fewshot"):
        convert(DATASET_REGISTRY.get("OxfordPets"), str(tmp_path))

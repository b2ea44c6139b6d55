"""One's own images without code: class folders, tables and split files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets  # noqa: F401 - registers the readers
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.datasets import build_dataset
from dassl.utils import UserError
from tests.datasets.layouts import awkward, broken, image, lines


def load(root: Path, shots: int = -1, classes: str = "all"):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "ImageFolder", str(root)
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = shots, classes
    cfg.SEED, cfg.VERBOSE = 1, False
    return build_dataset(cfg)


def folders(root: Path, names=("cat", "dog", "emu"), count: int = 10) -> None:
    for name in names:
        for i in range(count):
            image(root / name / f"{i}.PNG")


def parts(data) -> list[set[str]]:
    return [
        {str(Path(i.impath).relative_to(data.image_dir)) for i in items or []}
        for items in (data.train_x, data.val, data.test)
    ]


def test_class_folders_are_split_once(tmp_path, capsys):
    folders(tmp_path)
    data = load(tmp_path)
    assert data.classnames == ["cat", "dog", "emu"]
    train, val, test = parts(data)
    assert (len(train), len(val), len(test)) == (15, 6, 9)
    assert len(train | val | test) == 30
    assert parts(load(tmp_path)) == [train, val, test]
    few = load(tmp_path, shots=2, classes="new")
    assert few.classnames == ["emu"]
    assert len(few.train_x) == 2 and few.fewshot_hash
    load(tmp_path)  # split_fewshot/ is no class
    assert capsys.readouterr().out.count("drew a split") == 1
    image(tmp_path / "cat" / "new.jpg")
    assert parts(load(tmp_path)) == [train, val, test]
    assert "drawn from 30 images and there are 31 now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("train", "val", "test"), (6, 6, 6)),
        (("Train", "Test"), (6, 0, 6)),
        (("training", "validation"), (6, 6, 6)),  # no test: val is tested on
    ],
)
def test_train_val_test_folders(names, sizes, tmp_path):
    for name in names:
        folders(tmp_path / name, ("b", "a"), 3)
    data = load(tmp_path)
    assert data.classnames == ["a", "b"]
    assert tuple(map(len, parts(data))) == sizes
    assert all(path.lower().startswith("train") for path in parts(data)[0])
    assert not (tmp_path / "split.json").exists()


def test_a_class_called_train_is_a_class(tmp_path):
    folders(tmp_path, ("bus", "test", "train"))
    assert load(tmp_path).classnames == ["bus", "test", "train"]


def test_a_class_that_only_test_has(tmp_path):
    folders(tmp_path / "train", ("a", "b"), 3)
    folders(tmp_path / "test", ("a", "b", "c"), 3)
    with pytest.raises(UserError, match="'c'"):
        load(tmp_path)


@pytest.mark.parametrize("header", [["path,class,split"], ["Filename,Label,Set"], []])
@pytest.mark.parametrize("direct", [False, True])
def test_table_with_split(header, direct, tmp_path):
    rows = []
    for name in ("zebra crossing", "ant"):
        for i, part in enumerate(["train", "train", "val", "test", "TEST"]):
            image(tmp_path / "all" / f"{name} {i}.jpg")
            rows.append(f"all/{name} {i}.jpg,{name},{part}")
    table = tmp_path / ("photos.csv" if direct else "labels.csv")
    lines(table, [*header, *rows, "", ""])
    data = load(table if direct else tmp_path)
    assert data.classnames == ["ant", "zebra crossing"]
    assert tuple(map(len, parts(data))) == (4, 2, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["all", table.name])


def test_table_without_split_is_split_once(tmp_path):
    folders(tmp_path, ("x",), 20)
    rows = [f"x/{i}.PNG,{'even' if i % 2 == 0 else 'odd'}" for i in range(20)]
    lines(tmp_path / "labels.csv", ["class,path", *(",".join(r.split(",")[::-1]) for r in rows)])
    data = load(tmp_path, shots=3)
    assert data.classnames == ["even", "odd"]
    assert (len(data.train_x), len(data.val), len(data.test)) == (6, 4, 6)
    assert (tmp_path / "labels.split.json").is_file()
    assert load(tmp_path, shots=3).train_x == data.train_x


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "every row"),
        (["path,class"], "every row"),
        (["a.jpg"], "every row"),
        (["a.jpg,x,train", "b.jpg,x,tset"], "tset"),
        (["a.jpg,x,train", "b.jpg,x"], "some rows"),
        (["a.jpg,x,train", "b.jpg,y,test"], "'y'"),
        (["a.jpg,x,train", "b.jpg,x,test"], "missing"),
        (["a.jpg,x,train"], "no test images"),
    ],
)
def test_odd_tables_end_in_one_line(rows, message, tmp_path):
    lines(tmp_path / "labels.csv", rows)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("direct", [False, True])
def test_split_file(direct, tmp_path):
    folders(tmp_path, ("p", "q"), 4)
    split = {
        "train": [["q/0.PNG", 0, "queen"], ["p/0.PNG", 1, "pawn"]],
        "test": [["p/1.PNG", "1", "pawn"], [str(tmp_path / "q" / "1.PNG"), 0, "queen"]],
    }
    path = tmp_path / ("mine.json" if direct else "split.json")
    path.write_text(json.dumps(split))
    data = load(path if direct else tmp_path, shots=1)
    assert data.classnames == ["queen", "pawn"]
    assert parts(data) == [{"q/0.PNG", "p/0.PNG"}, set(), {"p/1.PNG", "q/1.PNG"}]
    assert parts(load(path if direct else tmp_path, shots=1)) == parts(data)


def test_display_names_and_template(tmp_path):
    folders(tmp_path, ("n01 x", "n02", "n03"))
    lines(tmp_path / "classnames.txt", ["n01 x\ttabby cat", "n02 tabby cat"])
    lines(tmp_path / "template.txt", ["a drawing of a {}."])
    data = load(tmp_path)
    assert data.classnames == ["tabby cat", "tabby cat", "n03"]
    assert data.class_keys == ["n01 x", "n02", "n03"]
    assert data.template == "a drawing of a {}."
    n = len(data.classnames)
    assert load(tmp_path, shots=1, classes="base").num_classes == math.ceil(n / 2)


@pytest.mark.parametrize("text", ["", "a photo", "{} and {}", "a {}\nb {}"])
def test_odd_template(text, tmp_path):
    folders(tmp_path)
    (tmp_path / "template.txt").write_text(text)
    with pytest.raises(UserError, match="template.txt"):
        load(tmp_path)


def test_odd_display_names(tmp_path):
    folders(tmp_path)
    lines(tmp_path / "classnames.txt", ["cat"])
    with pytest.raises(UserError, match="'cat'"):
        load(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="one folder per class"):
        load(tmp_path)
    with pytest.raises(UserError, match="no such data folder"):
        load(tmp_path / "photos.csv")


# ------------------------------------------------------------ images that are hard to decode


def manager(root: Path, policy: str) -> DataManager:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "ImageFolder", str(root)
    cfg.INPUT.ON_DECODE_ERROR, cfg.INPUT.SIZE = policy, (6, 8)
    cfg.DATALOADER.NUM_WORKERS, cfg.SEED, cfg.VERBOSE = 0, 1, False
    return DataManager(cfg, custom_tfm_test=to_tensor)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_awkward_pictures_are_read_as_pillow_reads_them(tmp_path):
    awkward(tmp_path / "test" / "a")
    folders(tmp_path / "train", ("a",), 2)
    (batch,) = manager(tmp_path, "fail").test_loader
    assert len(batch["impath"]) == 5
    for path, pixels in zip(batch["impath"], batch["img"], strict=True):
        with Image.open(path) as picture:
            assert torch.equal(pixels, to_tensor(picture.convert("RGB"))), path
        assert pixels.shape == (3, 6, 8)  # the turned one too: as it is stored


@pytest.mark.parametrize("name", ["truncated.jpg", "zero.jpg", "text.png"])
def test_a_broken_picture_is_named(name, tmp_path):
    folders(tmp_path / "train", ("a",), 2)
    awkward(tmp_path / "test" / "a")
    broken(tmp_path / "all")
    (tmp_path / "all" / name).rename(tmp_path / "test" / "a" / name)
    with pytest.raises(UserError, match=f"test/a/{name}"):
        list(manager(tmp_path, "fail").test_loader)


def test_broken_pictures_are_left_out_and_counted_on_request(tmp_path):
    folders(tmp_path / "train", ("a",), 2)
    awkward(tmp_path / "test" / "a")
    broken(tmp_path / "test" / "a")
    data = manager(tmp_path, "skip")
    (batch,) = data.test_loader
    assert {Path(path).name for path in batch["impath"]} == {
        "cmyk.jpg", "palette.png", "deep.png", "alpha.png", "turned.jpg",
    }  # fmt: skip
    assert data.skipped_images == 3

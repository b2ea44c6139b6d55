"""Every reader on a miniature of its official layout, against independently written references."""

import json
import math
import random
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from scipy.io import savemat

import datasets
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, build_dataset
from dassl.utils import UserError
from datasets import annotations
from tests.datasets import layouts
from tests.datasets.layouts import BUILDERS, build, write_split

ALL = sorted(BUILDERS)
VARIANTS = {"ImageNetA", "ImageNetR", "ImageNetSketch", "ImageNetV2"}
WITH_SPLIT_FILE = [n for n in ALL if not n.startswith("ImageNet") and n != "FGVCAircraft"]


def load(name: str, root: Path, shots: int = -1, seed: int = 1, classes: str = "all"):
    cfg = get_cfg_default()
    cfg.DATASET.NAME = name
    cfg.DATASET.ROOT = str(root)
    cfg.DATASET.NUM_SHOTS = shots
    cfg.DATASET.SUBSAMPLE_CLASSES = classes
    cfg.SEED = seed
    cfg.VERBOSE = False
    return build_dataset(cfg)


def rows(items, root: Path, expected) -> list[tuple[str, int, str]]:
    """Rows with paths relative to the image folder."""
    image_dir = (root / expected.folder / expected.image_dir).resolve()
    return [
        (str(Path(i.impath).resolve().relative_to(image_dir)), i.label, i.classname)
        for i in items or []
    ]


def named(pairs, expected) -> list[tuple[str, int, str]]:
    return [(path, label, expected.classnames[label]) for path, label in pairs]


def draw_per_class(rows_: list[tuple[str, int, str]], shots: int, rng: random.Random) -> list:
    """The few-shot rule, written from its description."""
    met: list[int] = []
    for row in rows_:
        if row[1] not in met:
            met.append(row[1])
    out = []
    for label in met:
        mine = [row for row in rows_ if row[1] == label]
        out += mine if len(mine) < shots else rng.sample(mine, shots)
    return out


def drawn_split(expected) -> tuple[list, list, list]:
    """The rules for a missing split file, written from their description, with seed 1."""
    rng = random.Random(1)
    train, val, test = [], [], list(expected.test)
    if expected.pools:
        for label, pool in expected.pools.items():
            mixed = [(path, label) for path in pool]
            rng.shuffle(mixed)
            a, b = round(0.5 * len(mixed)), round(0.2 * len(mixed))
            train += mixed[:a]
            val += mixed[a : a + b]
            test += mixed[a + b :]
    else:
        for label in dict.fromkeys(label for _, label in expected.trainval):
            mixed = [row for row in expected.trainval if row[1] == label]
            rng.shuffle(mixed)
            b = round(0.2 * len(mixed))
            val += mixed[:b]
            train += mixed[b:]
    return tuple(named(part, expected) for part in (train, val, test))


@pytest.mark.parametrize("name", ALL)
def test_class_names_and_lists(name, tmp_path):
    expected = build(name, tmp_path)
    data = load(name, tmp_path)
    assert data.classnames == expected.classnames
    assert data.num_classes == len(expected.classnames)
    assert data.lab2cname == dict(enumerate(expected.classnames))
    assert data.class_keys == (expected.keys or expected.classnames)
    assert data.template.count("{}") == 1
    if expected.split_file:
        train, val, test = drawn_split(expected)
    else:
        train, val, test = (
            named(part, expected) for part in (expected.train, expected.val, expected.test)
        )
    assert rows(data.train_x, tmp_path, expected) == train
    assert rows(data.val, tmp_path, expected) == (test if name == "ImageNet" else val)
    assert rows(data.test, tmp_path, expected) == test
    assert all(Path(item.impath).is_file() for item in data.test)


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_a_drawn_split_is_saved_and_read_again_whatever_the_seed(name, tmp_path, capsys):
    expected = build(name, tmp_path)
    first = load(name, tmp_path, seed=3)
    assert "drew a split with seed 1" in capsys.readouterr().out
    saved = json.loads((tmp_path / expected.folder / expected.split_file).read_text())
    assert saved["drawn_with_seed"] == 1
    assert [tuple(r) for r in saved["train"]] == rows(first.train_x, tmp_path, expected)
    second = load(name, tmp_path, seed=2)
    assert "drew a split" not in capsys.readouterr().out
    assert second.train_x == first.train_x
    assert second.split_hash == first.split_hash


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
@pytest.mark.parametrize("strings", [False, True])
def test_split_file_is_read_in_its_own_order(name, strings, tmp_path):
    expected = build(name, tmp_path)
    split = write_split(tmp_path, expected, strings)
    data = load(name, tmp_path)
    assert data.classnames == expected.classnames
    for part, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
        assert rows(items, tmp_path, expected) == split[part]


@pytest.mark.parametrize("name", [n for n in ALL if n not in VARIANTS])
@pytest.mark.parametrize(("shots", "seed"), [(1, 0), (2, 1), (4, 2), (5, 3), (16, 1)])
def test_samples_are_the_field_s(name, shots, seed, tmp_path):
    expected = build(name, tmp_path)
    if expected.split_file:
        split = write_split(tmp_path, expected)
        train, val = split["train"], split["val"]
    else:
        train, val = named(expected.train, expected), named(expected.val, expected)
    rng = random.Random(seed)
    wanted = draw_per_class(train, shots, rng), draw_per_class(val, min(shots, 4), rng)

    random.seed(123)
    before = random.getstate()
    data = load(name, tmp_path, shots, seed)
    assert random.getstate() == before  # the run's own random numbers are untouched
    again = load(name, tmp_path, shots, seed)  # from the kept sample
    for got in (data, again):
        assert rows(got.train_x, tmp_path, expected) == wanted[0]
        if name != "ImageNet":  # validates on its test list, unsampled
            assert rows(got.val, tmp_path, expected) == wanted[1]
    assert data.fewshot_hash == again.fewshot_hash
    assert re.fullmatch("[0-9a-f]{64}", data.fewshot_hash)
    kept = tmp_path / expected.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"
    content = json.loads(kept.read_text())
    assert [tuple(row) for row in content["train"]] == wanted[0]


@pytest.mark.parametrize("name", ALL)
def test_the_label_space_is_all_classes_in_label_order(name, tmp_path):
    expected = build(name, tmp_path)
    data = load(name, tmp_path, classes="new")
    keys = expected.keys or expected.classnames
    names = dict(zip(keys, expected.classnames, strict=True))
    if expected.keys:  # ImageNet and its variants know the whole list, whatever folders there are
        listed = (tmp_path / expected.folder / "classnames.txt").read_text().splitlines()
        names = dict(sorted(line.split(" ", 1) for line in listed))
    assert list(data.label_space.items()) == list(names.items())
    assert set(data.class_keys) <= set(data.label_space)


@pytest.mark.parametrize("name", ALL)
def test_base_and_new_halves(name, tmp_path):
    expected = build(name, tmp_path)
    if expected.split_file:
        write_split(tmp_path, expected)
    whole = load(name, tmp_path, shots=2)
    halves = {c: load(name, tmp_path, shots=2, classes=c) for c in ("base", "new")}
    n = len(expected.classnames)
    assert halves["base"].classnames == expected.classnames[: math.ceil(n / 2)]
    assert halves["new"].classnames == expected.classnames[math.ceil(n / 2) :]
    assert halves["base"].class_keys + halves["new"].class_keys == whole.class_keys
    for part in ("train_x", "val", "test"):
        # Filtered lists: order and images of the whole, labels from 0.
        for classes, shift in (("base", 0), ("new", math.ceil(n / 2))):
            got = getattr(halves[classes], part) or []
            names = halves[classes].classnames
            assert [names[item.label] for item in got] == [item.classname for item in got]
            mine = range(shift, shift + len(names))
            assert [item.impath for item in got] == [
                item.impath for item in getattr(whole, part) or [] if item.label in mine
            ]
    # The sample is drawn over all classes, before they are halved.
    assert {whole.fewshot_hash} == {half.fewshot_hash for half in halves.values()}


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_are_all_test_and_ignore_shots(name, tmp_path):
    build(name, tmp_path)
    one, all_ = load(name, tmp_path, shots=1), load(name, tmp_path)
    assert one.test == all_.test
    assert not one.train_x and not one.val


def test_templates_are_the_hand_written_ones():
    assert {name: DATASET_REGISTRY.get(name).template for name in ALL} == {
        "Caltech101": "a photo of a {}.",
        "DescribableTextures": "a photo of a {}, a type of texture.",
        "EuroSAT": "a centered satellite photo of {}.",
        "FGVCAircraft": "a photo of a {}, a type of aircraft.",
        "Food101": "a photo of {}, a type of food.",
        "ImageNet": "a photo of a {}.",
        "ImageNetA": "a photo of a {}.",
        "ImageNetR": "a photo of a {}.",
        "ImageNetSketch": "a photo of a {}.",
        "ImageNetV2": "a photo of a {}.",
        "OxfordFlowers": "a photo of a {}, a type of flower.",
        "OxfordPets": "a photo of a {}, a type of pet.",
        "StanfordCars": "a photo of a {}.",
        "SUN397": "a photo of a {}.",
        "UCF101": "a photo of a person doing {}.",
    }


@pytest.mark.parametrize("name", ALL)
def test_config_file_names_the_reader(name):
    folder = Path(__file__).parents[2] / "configs" / "datasets"
    module = DATASET_REGISTRY.get(name).__module__.rpartition(".")[2]
    cfg = get_cfg_default()
    cfg.merge_from_file(str(folder / f"{module}.yaml"))
    assert name == cfg.DATASET.NAME


# ------------------------------------------------------------ ImageNet's other layouts


def flat_val(root: Path, expected) -> dict[int, str]:
    """Make `val/` flat; return the WordNet ids by image number."""
    val = root / "imagenet" / "images" / "val"
    truth = {}
    for path in sorted(val.glob("*/*")):
        truth[int(path.stem.rpartition("_")[2])] = path.parent.name
        path.rename(val / path.name)
    for folder in [path for path in val.iterdir() if path.is_dir()]:
        folder.rmdir()
    del expected
    return truth


def write_devkit(folder: Path, truth: dict[int, str]) -> None:
    ids = sorted(layouts.WORDNET)
    numbers = {wordnet_id: 1 + (3 * i) % len(ids) for i, wordnet_id in enumerate(ids)}
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    synsets = np.zeros((len(ids), 1), kinds)
    for i, wordnet_id in enumerate(sorted(ids, key=numbers.get)):
        synsets[i, 0] = (np.array([[i + 1]]), wordnet_id, layouts.WORDNET[wordnet_id])
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": synsets})
    layouts.lines(
        folder / "ILSVRC2012_validation_ground_truth.txt",
        [str(numbers[truth[n]]) for n in sorted(truth)],
    )


@pytest.mark.parametrize("layout", ["torchvision", "devkit", "packed devkit", "kaggle"])
def test_imagenet_layouts_give_the_same_lists(layout, tmp_path):
    expected = build("ImageNet", tmp_path)
    usual = load("ImageNet", tmp_path, shots=2)
    wanted = [(Path(i.impath).name, i.label, i.class_key) for i in usual.test]
    folder = tmp_path / "imagenet"
    kept = folder / "split_fewshot" / "shot_2-seed_1.json"
    kept.unlink()
    if layout == "torchvision":
        for part in ("train", "val"):
            (folder / "images" / part).rename(folder / part)
    else:
        truth = flat_val(tmp_path, expected)
        if "devkit" in layout:
            devkit = folder / "ILSVRC2012_devkit_t12"
            write_devkit(devkit / "data", truth)
            if layout == "packed devkit":
                with tarfile.open(f"{devkit}.tar.gz", "w:gz") as archive:
                    archive.add(devkit, devkit.name)
                shutil.rmtree(devkit)
        else:
            (folder / "ILSVRC" / "Data").mkdir(parents=True)
            (folder / "images").rename(folder / "ILSVRC" / "Data" / "CLS-LOC")
            layouts.lines(
                folder / "LOC_val_solution.csv",
                ["ImageId,PredictionString"]
                + [f"ILSVRC2012_val_{n:08d},{truth[n]} 1 2 3 4 " for n in sorted(truth, key=hash)],
            )
    data = load("ImageNet", tmp_path, shots=2)
    assert [(Path(i.impath).name, i.label, i.class_key) for i in data.test] == wanted
    assert [Path(i.impath).name for i in data.train_x] == [
        Path(i.impath).name for i in usual.train_x
    ]
    assert data.fewshot_hash == usual.fewshot_hash


def test_a_missing_file_does_not_shift_a_flat_val(tmp_path):
    expected = build("ImageNet", tmp_path)
    labels = {Path(i.impath).name: i.label for i in load("ImageNet", tmp_path).test}
    truth = flat_val(tmp_path, expected)
    write_devkit(tmp_path / "imagenet" / "ILSVRC2012_devkit_t12" / "data", truth)
    gone = tmp_path / "imagenet" / "images" / "val" / "ILSVRC2012_val_00000002.JPEG"
    gone.unlink()
    del labels[gone.name]
    assert {Path(i.impath).name: i.label for i in load("ImageNet", tmp_path).test} == labels


def test_a_flat_val_of_unknown_classes_says_what_is_missing(tmp_path):
    flat_val(tmp_path, build("ImageNet", tmp_path))
    with pytest.raises(UserError, match="devkit_t12.tar.gz"):
        load("ImageNet", tmp_path)


def test_classnames_are_found_beside_imagenet(tmp_path):
    build("ImageNet", tmp_path)
    expected = build("ImageNetA", tmp_path)
    (tmp_path / "imagenet-adversarial" / "classnames.txt").unlink()
    assert load("ImageNetA", tmp_path).classnames == expected.classnames


# ------------------------------------------------------------ where the originals break


@pytest.mark.parametrize("name", ALL)
def test_clutter_and_blank_lines_change_nothing(name, tmp_path):
    expected = build(name, tmp_path)
    clean = load(name, tmp_path)
    folder = tmp_path / expected.folder
    if expected.split_file:
        (folder / expected.split_file).unlink()
    image_dir = folder / expected.image_dir
    for place in [image_dir, *(p for p in image_dir.rglob("*") if p.is_dir())]:
        (place / "Thumbs.db").write_bytes(b"x")
        (place / ".hidden.jpg").write_bytes(b"x")
        (place / "notes.txt").write_text("x")
        (place / ".hidden").mkdir()
        layouts.image(place / ".hidden" / "1.jpg")
    for listing in [*folder.glob("*.txt"), *folder.glob("*/*.txt")]:
        if listing.name not in ("notes.txt", "README.txt"):
            text = listing.read_text().replace("\n", "\r\n\r\n  \r\n")
            listing.write_text("\r\n" + text, newline="")
    again = load(name, tmp_path)
    assert again.classnames == clean.classnames
    assert again.train_x == clean.train_x
    assert again.test == clean.test


@pytest.mark.parametrize("name", ALL)
def test_missing_root_and_folder_say_what_to_do(name, tmp_path):
    with pytest.raises(UserError, match="--root"):
        load(name, "")
    with pytest.raises(UserError, match="no such data folder"):
        load(name, tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"(?s)no folder .*prepare_data\.py {name} --root"):
        load(name, tmp_path)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("StanfordCars", "ImageNet")])
def test_a_folder_one_off_is_pointed_out(name, tmp_path):
    expected = build(name, tmp_path)
    folder = tmp_path / expected.folder
    (folder / "extracted").mkdir()
    image_dir = folder / expected.image_dir
    image_dir.rename(folder / "extracted" / expected.image_dir)
    with pytest.raises(UserError, match="there is .*extracted.*move it"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("OxfordPets", "annotations/trainval.txt"),
        ("StanfordCars", "devkit/cars_meta.mat"),
        ("OxfordFlowers", "imagelabels.mat"),
        ("OxfordFlowers", "cat_to_name.json"),
        ("FGVCAircraft", "variants.txt"),
        ("FGVCAircraft", "images_variant_val.txt"),
        ("SUN397", "ClassName.txt"),
        ("UCF101", "ucfTrainTestlist/classInd.txt"),
        ("ImageNet", "classnames.txt"),
        ("ImageNetV2", "classnames.txt"),
    ],
)
def test_a_missing_list_is_named(name, file, tmp_path):
    expected = build(name, tmp_path)
    (tmp_path / expected.folder / file).unlink()
    with pytest.raises(UserError, match=Path(file).name):
        load(name, tmp_path)


def test_damaged_mat_file_is_named(tmp_path):
    build("OxfordFlowers", tmp_path)
    (tmp_path / "oxford_flowers" / "imagelabels.mat").write_bytes(b"<html>quota</html>")
    with pytest.raises(UserError, match="imagelabels.mat"):
        load("OxfordFlowers", tmp_path)


def test_missing_images_are_counted_and_named(tmp_path):
    build("OxfordPets", tmp_path)
    for path in sorted((tmp_path / "oxford_pets" / "images").glob("pug_*"))[:3]:
        path.unlink()
    with pytest.raises(UserError, match=r"3 of \d+ listed images are missing, first .*pug_1"):
        load("OxfordPets", tmp_path)


def test_a_class_folder_that_only_train_has(tmp_path):
    build("ImageNet", tmp_path)
    for path in (tmp_path / "imagenet/images/val/n01440764").iterdir():
        path.unlink()
    (tmp_path / "imagenet/images/val/n01440764").rmdir()
    with pytest.raises(UserError, match="n01440764"):
        load("ImageNet", tmp_path)


def test_an_empty_class_folder_is_named(tmp_path):
    build("DescribableTextures", tmp_path)
    (tmp_path / "dtd" / "images" / "blotchy").mkdir()
    with pytest.raises(UserError, match="blotchy"):
        load("DescribableTextures", tmp_path)


@pytest.mark.parametrize(("count", "sizes"), [(2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_tiny_classes_without_a_split_file(count, sizes, tmp_path):
    build("DescribableTextures", tmp_path)
    for i in range(count):
        layouts.image(tmp_path / "dtd" / "images" / "aaa" / f"{i}.jpg")
    data = load("DescribableTextures", tmp_path)
    parts = (data.train_x, data.val, data.test)
    assert tuple(sum(i.classname == "aaa" for i in part) for part in parts) == sizes


def test_a_class_of_one_image_is_named(tmp_path):
    build("DescribableTextures", tmp_path)
    layouts.image(tmp_path / "dtd" / "images" / "aaa" / "1.jpg")
    with pytest.raises(UserError, match="aaa"):
        load("DescribableTextures", tmp_path)


def pets_with_split(tmp_path, change) -> None:
    expected = build("OxfordPets", tmp_path)
    write_split(tmp_path, expected)
    path = tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json"
    split = json.loads(path.read_text())
    path.write_text(json.dumps(change(split) or split))


def test_one_label_with_two_names(tmp_path):
    pets_with_split(tmp_path, lambda s: s["test"][0].__setitem__(2, "tabby"))
    with pytest.raises(UserError, match="tabby"):
        load("OxfordPets", tmp_path)


def test_a_class_absent_from_train(tmp_path):
    pets_with_split(tmp_path, lambda s: {**s, "train": [r for r in s["train"] if r[1] != 1]})
    with pytest.raises(UserError, match="american_bulldog"):
        load("OxfordPets", tmp_path)


def test_a_gap_in_the_labels_is_closed(tmp_path):
    def change(split):
        for part in split.values():
            for row in part:
                row[1] = {0: 0, 1: 4, 2: 5, 3: 9}[row[1]]

    pets_with_split(tmp_path, change)
    data = load("OxfordPets", tmp_path, shots=2)
    assert data.classnames == ["abyssinian", "american_bulldog", "egyptian_mau", "pug"]
    assert {item.label for item in data.train_x} == {0, 1, 2, 3}
    assert all(data.lab2cname[item.label] == item.classname for item in data.test)
    kept = json.loads((tmp_path / "oxford_pets/split_fewshot/shot_2-seed_1.json").read_text())
    assert {row[1] for row in kept["train"]} == {0, 4, 5, 9}  # labels of the split file
    assert load("OxfordPets", tmp_path, 2, classes="new").classnames == ["egyptian_mau", "pug"]


@pytest.mark.parametrize(
    "entry", [["a.jpg", "cat", "cat"], ["a.jpg", 1], "a.jpg", ["a.jpg", -1, "cat"], [1, 1, "cat"]]
)
def test_odd_entries_of_a_split_file_are_shown(entry, tmp_path):
    pets_with_split(tmp_path, lambda s: s["train"].append(entry))
    with pytest.raises(UserError, match=r"'train'\[\d+\]"):
        load("OxfordPets", tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"train": []}', "{"])
def test_a_split_file_that_is_none(text, tmp_path):
    build("OxfordPets", tmp_path)
    (tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json").write_text(text)
    with pytest.raises(UserError, match="split_zhou_OxfordPets.json"):
        load("OxfordPets", tmp_path)


def test_unknown_names_suggest_the_nearest(tmp_path):
    build("OxfordPets", tmp_path)
    with pytest.raises(UserError, match="did you mean 'OxfordPets'"):
        load("OxfordPet", tmp_path)
    with pytest.raises(UserError, match="did you mean 'base'"):
        load("OxfordPets", tmp_path, classes="basis")


def test_every_image_data_set_is_registered_by_being_there():
    folder = Path(datasets.__file__).parent
    classes = Counter(
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"register\(\)\nclass (\w+)", path.read_text())
    )
    assert set(classes) <= set(DATASET_REGISTRY.registered_names())
    assert set(ALL) <= set(classes)
    assert all(issubclass(DATASET_REGISTRY.get(name), DatasetBase) for name in classes)


def test_a_mat_file_that_takes_its_reader_down(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "a.mat", {"labels": [1, 2]})
    assert list(annotations.read_mat(str(tmp_path / "a.mat"), "labels")) == [1, 2]
    monkeypatch.setattr(annotations, "_TRIAL", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(UserError, match="a.mat is not a readable MATLAB file: SciPy crashes"):
        annotations.read_mat(str(tmp_path / "a.mat"), "labels")

"""Miniature copies of the official layouts, annotation files included, and what's to be read there.

`build(name, root, rng)` writes the layout of the data set `name` below `root` as it is after
extracting the official archives, without a split file, and returns what a reader must find.
"""

import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def _jpeg() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (6, 5), (200, 30, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = _jpeg()
PER_CLASS = 11  # images of a class; odd, so that rounding shows


@dataclass
class Expected:
    """What a reader must find: class names by label, and the official lists where there are any.

    A row is (path relative to the image folder, label). `pools` holds, per label in the order in
    which the labels are met, the paths that a 50/20/30 split is drawn from.
    """

    folder: str
    image_dir: str
    classnames: list[str]
    split_file: str = ""
    trainval: list[tuple[str, int]] = field(default_factory=list)
    train: list[tuple[str, int]] = field(default_factory=list)
    val: list[tuple[str, int]] = field(default_factory=list)
    test: list[tuple[str, int]] = field(default_factory=list)
    pools: dict[int, list[str]] = field(default_factory=dict)
    keys: list[str] | None = None


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(JPEG)


def awkward(folder: Path) -> None:
    """Write pictures that decode, if only just."""
    folder.mkdir(parents=True)
    rng = random.Random(1)
    rgb = Image.frombytes("RGB", (8, 6), rng.randbytes(144))
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.quantize(4).save(folder / "palette.png", transparency=1)
    Image.frombytes("I;16", (8, 6), rng.randbytes(96)).save(folder / "deep.png")
    rgb.convert("LA").save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    rgb.save(folder / "turned.jpg", exif=exif)


def broken(folder: Path) -> None:
    """Write pictures that don't decode."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    Image.frombytes("RGB", (64, 64), random.Random(2).randbytes(12288)).save(buffer, "JPEG")
    (folder / "truncated.jpg").write_bytes(buffer.getvalue()[:-2000])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")


def lines(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def class_folder_set(
    root: Path, folder: str, image_dir: str, names: dict[str, str | None], split_file: str
) -> Expected:
    """Folders to class names; None: a folder that is no class."""
    kept = sorted(name for name, classname in names.items() if classname)
    expected = Expected(folder, image_dir, [names[name] for name in kept], split_file)
    for name in sorted(names):
        files = [f"{name}/image_{i:04d}.jpg" for i in range(1, PER_CLASS + len(name) % 3)]
        for file in files:
            image(root / folder / image_dir / file)
        if name in kept:
            expected.pools[kept.index(name)] = files
    return expected


def caltech101(root: Path, rng: random.Random) -> Expected:
    names = {
        "Faces": "face",
        "Faces_easy": None,
        "BACKGROUND_Google": None,
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "accordion": "accordion",
        "airplanes": "airplane",
        "yin_yang": "yin_yang",
    }
    return class_folder_set(
        root, "caltech-101", "101_ObjectCategories", names, "split_zhou_Caltech101.json"
    )


def dtd(root: Path, rng: random.Random) -> Expected:
    names = {name: name for name in ("zigzagged", "banded", "woven", "polka-dotted")}
    return class_folder_set(root, "dtd", "images", names, "split_zhou_DescribableTextures.json")


def food101(root: Path, rng: random.Random) -> Expected:
    names = {name: name for name in ("apple_pie", "waffles", "beef_tartare")}
    lines(root / "food-101" / "meta" / "train.txt", ["apple_pie/image_0001"])
    return class_folder_set(root, "food-101", "images", names, "split_zhou_Food101.json")


def eurosat(root: Path, rng: random.Random) -> Expected:
    names = {
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
    return class_folder_set(root, "eurosat", "2750", names, "split_zhou_EuroSAT.json")


def oxford_pets(root: Path, rng: random.Random) -> Expected:
    breeds = ["Abyssinian", "american_bulldog", "Egyptian_Mau", "pug"]
    rows = [(f"{b}_{i}", label) for label, b in enumerate(breeds) for i in range(1, PER_CLASS)]
    rng.shuffle(rows)
    folder = root / "oxford_pets"
    expected = Expected(
        "oxford_pets", "images", [b.lower() for b in breeds], "split_zhou_OxfordPets.json"
    )
    for part, name in ((rows[:28], "trainval"), (rows[28:], "test")):
        lines(folder / "annotations" / f"{name}.txt", [f"{i} {y + 1} 1 2" for i, y in part])
        setattr(expected, name, [(f"{i}.jpg", y) for i, y in part])
    for stem, _ in rows:
        image(folder / "images" / f"{stem}.jpg")
    return expected


def _cars_mat(path: Path, rows: list[tuple[str, int]]) -> None:
    kinds = [(f"bbox_{c}", object) for c in ("x1", "y1", "x2", "y2")]
    records = np.zeros((1, len(rows)), [*kinds, ("class", object), ("fname", object)])
    for i, (file, label) in enumerate(rows):
        box = [np.array([[n]], np.uint8) for n in (1, 2, 90, 80)]
        records[0, i] = (*box, np.array([[label + 1]], np.uint8), file)
    savemat(path, {"annotations": records})


def stanford_cars(root: Path, rng: random.Random) -> Expected:
    cars = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo 2012"]
    names = [
        "2000 AM General Hummer SUV",
        "2012 Ram C/V Cargo Van Minivan",
        "2012 smart fortwo",
    ]
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    cells = np.array([[*cars]], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cells})
    expected = Expected("stanford_cars", "", names, "split_zhou_StanfordCars.json")
    for part, where, mat in (
        ("trainval", "cars_train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test", "cars_test_annos_withlabels.mat"),
    ):
        labels = [i % 3 for i in range(PER_CLASS * 2)]
        rng.shuffle(labels)
        rows = [(f"{i:05d}.jpg", label) for i, label in enumerate(labels, start=1)]
        _cars_mat(folder / mat, rows)
        for file, _ in rows:
            image(folder / where / file)
        setattr(expected, part, [(f"{where}/{file}", label) for file, label in rows])
    return expected


def oxford_flowers(root: Path, rng: random.Random) -> Expected:
    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "canterbury bells"}
    folder = root / "oxford_flowers"
    labels = [1 + i % 3 for i in range(PER_CLASS * 3)]
    rng.shuffle(labels)
    expected = Expected(
        "oxford_flowers", "jpg", list(names.values()), "split_zhou_OxfordFlowers.json"
    )
    pools = defaultdict(list)
    for number, label in enumerate(labels, start=1):
        image(folder / "jpg" / f"image_{number:05d}.jpg")
        pools[label - 1].append(f"image_{number:05d}.jpg")
    expected.pools = dict(pools)
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    (folder / "cat_to_name.json").write_text(json.dumps(dict(reversed(names.items()))))
    return expected


def fgvc_aircraft(root: Path, rng: random.Random) -> Expected:
    names = ["707-320", "An-12", "BAE 146-200", "F/A-18"]
    folder = root / "fgvc_aircraft"
    lines(folder / "variants.txt", names)
    expected = Expected("fgvc_aircraft", "images", names)
    for part in ("train", "val", "test"):
        labels = [i % 4 for i in range(PER_CLASS * 2)]
        rng.shuffle(labels)
        start = {"train": 0, "val": 100, "test": 200}[part]
        rows = [(f"{start + i:07d}", label) for i, label in enumerate(labels)]
        lines(folder / f"images_variant_{part}.txt", [f"{i} {names[y]}" for i, y in rows])
        for stem, _ in rows:
            image(folder / "images" / f"{stem}.jpg")
        setattr(expected, part, [(f"{stem}.jpg", label) for stem, label in rows])
    return expected


def sun397(root: Path, rng: random.Random) -> Expected:
    scenes = ["/a/abbey", "/a/apartment_building/outdoor", "/y/yard"]
    folder = root / "sun397"
    lines(folder / "ClassName.txt", scenes)
    expected = Expected(
        "sun397",
        "SUN397",
        ["abbey", "outdoor apartment_building", "yard"],
        "split_zhou_SUN397.json",
    )
    for part, name in (("trainval", "Training_01.txt"), ("test", "Testing_01.txt")):
        rows = [(f"{s}/sun_{part}{i}.jpg", y) for y, s in enumerate(scenes) for i in range(7)]
        lines(folder / name, [path for path, _ in rows])
        for path, _ in rows:
            image(folder / "SUN397" / path[1:])
        setattr(expected, part, [(path[1:], label) for path, label in rows])
    return expected


def ucf101(root: Path, rng: random.Random) -> Expected:
    actions = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "HandstandPushups": "Handstand_Pushups"}
    actions["YoYo"] = "Yo_Yo"
    folder = root / "ucf101"
    listed = folder / "ucfTrainTestlist"
    lines(listed / "classInd.txt", [f"{i} {a}" for i, a in enumerate(actions, start=1)])
    expected = Expected(
        "ucf101", "UCF-101-midframes", list(actions.values()), "split_zhou_UCF101.json"
    )
    for part, name in (("trainval", "trainlist01.txt"), ("test", "testlist01.txt")):
        rows = []
        for label, action in enumerate(actions):
            # The files of HandstandPushups are spelt HandStandPushups.
            spelt = action.replace("Handstand", "HandStand")
            rows += [(action, f"v_{spelt}_g{i:02d}_{part}", label) for i in range(1, 9)]
        rng.shuffle(rows)
        number = part == "trainval"
        lines(listed / name, [f"{a}/{v}.avi" + f" {y + 1}" * number for a, v, y in rows])
        paths = [(f"{actions[a]}/{v}.jpg", y) for a, v, y in rows]
        for path, _ in paths:
            image(folder / "UCF-101-midframes" / path)
        setattr(expected, part, paths)
    return expected


WORDNET = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n03773504": "missile",
    "n04008634": "missile",
    "n04355933": "sunglasses",
}


def classnames_txt(folder: Path, names: dict[str, str]) -> None:
    lines(folder / "classnames.txt", [f"{i} {name}" for i, name in names.items()])


def imagenet(root: Path, rng: random.Random) -> Expected:
    folder = root / "imagenet"
    classnames_txt(folder, {**WORDNET, "n15075141": "toilet tissue"})  # one more than folders
    ids = sorted(WORDNET)
    expected = Expected("imagenet", "images", [WORDNET[i] for i in ids], keys=ids)
    for label, wordnet_id in enumerate(ids):
        numbers = rng.sample(range(1, 20000), PER_CLASS)
        expected.train += [
            (f"train/{wordnet_id}/{file}", label)
            for file in sorted(f"{wordnet_id}_{n}.JPEG" for n in numbers)
        ]
        expected.test += [
            (f"val/{wordnet_id}/ILSVRC2012_val_{n:08d}.JPEG", label)
            for n in range(label + 1, 16, len(ids))
        ]
    for path, _ in expected.train + expected.test:
        image(folder / "images" / path)
    return expected


def imagenetv2(root: Path, rng: random.Random) -> Expected:
    folder = root / "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    classnames_txt(folder, WORDNET)
    expected = Expected("imagenetv2", image_dir, list(WORDNET.values()), keys=list(WORDNET))
    expected.test = [(f"{k}/{c}.jpeg", k) for k in range(len(WORDNET)) for c in "abc"]
    for path, _ in expected.test:
        image(folder / image_dir / path)
    return expected


def _variant(folder: str, image_dir: str, ids: list[str], root: Path) -> Expected:
    classnames_txt(root / folder, WORDNET)
    expected = Expected(folder, image_dir, [WORDNET[i] for i in ids], keys=ids)
    expected.test = [(f"{i}/{c}.jpg", y) for y, i in enumerate(ids) for c in "0123"]
    for path, _ in expected.test:
        image(root / folder / image_dir / path)
    lines(root / folder / image_dir / "README.txt", ["ImageNet classes"])
    return expected


def imagenet_sketch(root: Path, rng: random.Random) -> Expected:
    return _variant("imagenet-sketch", "images", sorted(WORDNET), root)


def imagenet_a(root: Path, rng: random.Random) -> Expected:
    return _variant("imagenet-adversarial", "imagenet-a", ["n01443537", "n04355933"], root)


def imagenet_r(root: Path, rng: random.Random) -> Expected:
    return _variant("imagenet-rendition", "imagenet-r", sorted(WORDNET)[:3], root)


BUILDERS = {
    "Caltech101": caltech101,
    "DescribableTextures": dtd,
    "EuroSAT": eurosat,
    "FGVCAircraft": fgvc_aircraft,
    "Food101": food101,
    "ImageNet": imagenet,
    "ImageNetA": imagenet_a,
    "ImageNetR": imagenet_r,
    "ImageNetSketch": imagenet_sketch,
    "ImageNetV2": imagenetv2,
    "OxfordFlowers": oxford_flowers,
    "OxfordPets": oxford_pets,
    "StanfordCars": stanford_cars,
    "SUN397": sun397,
    "UCF101": ucf101,
}


def build(name: str, root: Path) -> Expected:
    """Write the miniature of the data set `name` below `root`."""
    return BUILDERS[name](root, random.Random(name))


def write_split(root: Path, expected: Expected, strings: bool = False) -> dict[str, list]:
    """Write a split file with its lists in mixed order, and return its content.

    `strings` writes the labels as strings.
    """
    rng = random.Random(7)
    pool = expected.trainval + expected.train + expected.val + expected.test
    pool += [(path, y) for y, paths in expected.pools.items() for path in paths]
    rng.shuffle(pool)
    rows = [[path, label, expected.classnames[label]] for path, label in pool]
    by_class = defaultdict(list)
    for row in rows:
        by_class[row[1]].append(row)
    split = {"train": [], "val": [], "test": []}
    for i, row in enumerate(rows):
        position = by_class[row[1]].index(row)
        part = "train" if position < 5 else "val" if position < 8 else "test"
        split[part].append([row[0], str(row[1]) if strings else row[1], row[2]])
        del i
    path = root / expected.folder / expected.split_file
    path.write_text(json.dumps(split))
    return {
        part: [(image_path, int(label), name) for image_path, label, name in part_rows]
        for part, part_rows in split.items()
    }

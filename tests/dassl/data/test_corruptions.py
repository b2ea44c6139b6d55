"""Corruptions of test images and misspelt class names: what they do, and that they repeat."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config import check_values
from dassl.config.severities import CORRUPTIONS, OF_IMAGES, SEVERITIES
from dassl.data import DataManager
from dassl.data.corruptions import _DONE, Corrupt, misspelt
from dassl.engine import build_trainer
from dassl.utils import UserError, read_json


def picture(seed: int = 0, width: int = 48, height: int = 32) -> Image.Image:
    """Smooth colors with an edge in them."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin((3 + c) * x + (2 + seed) * y + c) for c in range(3)]
    array = 127 + 90 * np.stack(waves, axis=-1) * np.where(x > 0.4, 1, -0.5)[..., None]
    return Image.fromarray(array.astype(np.uint8))


def distance(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_corruption_repeats_and_grows_with_its_severity(name):
    image = picture()
    done = [Corrupt(name, severity)(image) for severity in SEVERITIES]
    assert all(each.size == image.size and each.mode == "RGB" for each in done)
    np.random.seed(7)  # nothing global is drawn from
    torch.manual_seed(7)
    again = [Corrupt(name, severity)(picture()) for severity in reversed(SEVERITIES)]
    assert [x.tobytes() for x in again[::-1]] == [x.tobytes() for x in done]
    away = [distance(image, each) for each in done]
    assert away[0] > 0 and away[-1] > 1.3 * away[0]
    if name != "crop":  # another window may look more like the whole
        assert sorted(away) == away


@pytest.mark.parametrize("name", ["noise", "crop", "occlusion", "color", "rotation"])
def test_what_is_drawn_is_the_images_own(name):
    """The same change of two images would be the same places, sides and noise."""

    def moved(image):
        return np.asarray(Corrupt(name, 3)(image), int)

    flat = [Image.new("RGB", (32, 32), (100, 60 + i, 140)) for i in range(12)]
    if name in ("crop", "rotation"):  # of a flat image nothing moves
        for i, image in enumerate(flat):
            image.paste((0, 255, i), (4, 10, 9, 20))
    shifts = [moved(image) - np.asarray(image, int) for image in flat]
    assert len({shift.tobytes() for shift in np.sign(shifts)}) > 1


def test_amounts_by_hand():
    image = picture()
    x = np.asarray(image, float)
    mean = x.mean(axis=(0, 1))
    contrast = np.asarray(Corrupt("contrast", 2)(image), float)
    assert np.abs(contrast - (mean + 0.3 * (x - mean))).max() <= 0.51
    gray = Image.new("RGB", (224, 224), (127, 127, 127))
    noise = np.asarray(Corrupt("noise", 1)(gray), float) / 255
    assert abs(noise.std() - 0.08) < 1e-3 and abs(noise.mean() - 127 / 255) < 1e-3
    white = Image.new("RGB", (100, 50), (255, 255, 255))
    covered = (np.asarray(Corrupt("occlusion", 3)(white)) == 127).all(axis=-1)
    rows, columns = covered.any(axis=1).sum(), covered.any(axis=0).sum()
    assert (rows, columns) == (round(50 * 0.2**0.5), round(100 * 0.2**0.5))
    assert covered.sum() == rows * columns
    file = io.BytesIO()
    image.save(file, "JPEG", quality=7)
    assert Corrupt("jpeg", 5)(image).tobytes() == Image.open(file).convert("RGB").tobytes()


def test_blur_is_scaled_to_the_image():
    """A point on an image of 224 a side spreads by 2 pixels at severity 2, by 1 on 112."""
    for side, sd in ((224, 2.0), (112, 1.0)):
        point = Image.new("RGB", (side, side))
        point.paste((255, 255, 255), (side // 2, side // 2, side // 2 + 1, side // 2 + 1))
        spread = np.asarray(Corrupt("blur", 2)(point), float)[..., 0]
        offset = np.arange(side) - side // 2
        found = (spread.sum(axis=0) * offset**2).sum() / spread.sum()
        assert abs(found**0.5 - sd) < 0.25


def edits(one: str, other: str) -> int:
    """Insertions, deletions, replacements, and swaps of neighbors, between two strings."""
    d = {(i, 0): i for i in range(len(one) + 1)} | {(0, j): j for j in range(len(other) + 1)}
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(one), len(other)]


def test_names_get_as_many_typos_as_the_severity():
    names = ["tabby cat", "Boeing 737-200", "forget_me_not", "annual crop land", "river"]
    for severity in SEVERITIES:
        typed = misspelt(names, severity)
        assert typed == misspelt(names, severity)
        for name, text in zip(names, typed, strict=True):
            most = min(severity, sum(map(str.isalpha, name)) // 2)
            assert 1 <= edits(name, text) <= most, (name, text)
            assert [c for c in text if not c.isalpha()] == [c for c in name if not c.isalpha()]
    alone = misspelt(names[:1], 3)
    assert misspelt(names, 3)[:1] == alone  # whatever the other classes are


def test_no_typo_makes_another_classs_name_and_no_letters_no_typo():
    names = ["a", "s", "aa", "ss", "747-400", "b", "v", "n", "bb", "vv", "nn"]
    for severity in SEVERITIES:
        typed = misspelt(names, severity)
        assert typed[4] == "747-400" and len(set(typed)) == len(names)
        assert not (set(typed) - {"747-400"}) & set(names)
    assert misspelt(["ab", "ab"], 1)[0] == misspelt(["ab", "ab"], 1)[1]


def images(loader) -> dict[str, torch.Tensor]:
    return {
        path: image
        for batch in loader
        for path, image in zip(batch["impath"], batch["img"], strict=True)
    }


@pytest.mark.parametrize("split", ["test", "val"])
def test_only_what_is_tested_is_corrupted(make_cfg, split):
    plain = DataManager(make_cfg("TEST.SPLIT", split))
    cfg = make_cfg("TEST.SPLIT", split, "TEST.CORRUPTION", "noise")
    dm = DataManager(cfg)
    for loader in ("train_loader_x", "val_loader", "test_loader"):
        before, after = images(getattr(plain, loader)), images(getattr(dm, loader))
        same = [torch.equal(before[path], after[path]) for path in before]
        assert not any(same) if loader == f"{split}_loader" else all(same)
    cfg = make_cfg("TEST.SPLIT", split, "TEST.CORRUPTION", "noise", "DATALOADER.NUM_WORKERS", 2)
    cfg.DATALOADER.TEST.BATCH_SIZE = 3
    again = images(getattr(DataManager(cfg), f"{split}_loader"))
    first = images(getattr(dm, f"{split}_loader"))
    assert all(torch.equal(first[path], again[path]) for path in first)


def test_typos_are_the_prompts_alone(make_cfg):
    plain, dm = (DataManager(make_cfg("TEST.CORRUPTION", name)) for name in ("none", "typos"))
    assert dm.classnames == misspelt(plain.classnames, 3) == list(dm.lab2cname.values())
    assert dm.class_keys == plain.class_keys and dm.label_space == plain.label_space
    assert all(map(torch.equal, *(images(x.test_loader).values() for x in (plain, dm))))


def test_a_result_says_how_it_was_tested(make_cfg):
    build_trainer(make_cfg()).train()
    found = {}
    for name in ("none", "noise", "typos"):
        cfg = make_cfg("TEST.CORRUPTION", name, "TEST.SEVERITY", 5, output=name)
        trainer = build_trainer(cfg)
        trainer.load_model(make_cfg().OUTPUT_DIR)
        trainer.final_test()
        found[name] = read_json(f"{cfg.OUTPUT_DIR}/result.json", dict)
    assert found["none"]["corruption"] is None
    assert found["noise"]["corruption"] == {"name": "noise", "severity": 5}
    assert "amount=0.38" in found["noise"]["transform"]
    assert found["typos"]["classnames"] == misspelt(found["none"]["classnames"], 5)
    settings = [result["identity"]["settings"]["TEST.CORRUPTION"] for result in found.values()]
    assert settings == list(found)
    assert found["noise"]["accuracy"] <= found["none"]["accuracy"]  # colors alone tell classes here
    assert found["typos"]["accuracy"] == found["none"]["accuracy"]  # it reads no names


@pytest.mark.parametrize(
    "options,message",
    [
        (("TEST.CORRUPTION", "typos"), "train without it, and test the run with --eval-only"),
        (
            ("TEST.CORRUPTION", "jpeg", "TEST.SPLIT", "val", "TEST.FINAL_MODEL", "best_val"),
            "chooses the epoch by them",
        ),
        (("TEST.CORRUPTION", "blur", "INPUT.NO_TRANSFORM", True), "NO_TRANSFORM gives none"),
        (("TEST.CORRUPTION", "fog"), "must be one of none, noise, .*typos"),
        (("TEST.CORRUPTION", "blur", "TEST.SEVERITY", 6), "from 1 to 5"),
    ],
)
def test_what_would_change_the_training_or_means_nothing_is_refused(make_cfg, options, message):
    cfg = make_cfg(*options)
    with pytest.raises(UserError, match=message):
        build_trainer(cfg).train()


def test_a_test_transform_of_ones_own_is_refused(make_cfg):
    cfg = make_cfg("TEST.CORRUPTION", "blur")
    check_values(cfg)
    with pytest.raises(UserError, match="a test transform of its own"):
        DataManager(cfg, custom_tfm_test=lambda image: torch.zeros(3, 8, 8))


def test_every_name_is_one_of_images_or_of_names():
    assert set(CORRUPTIONS) - set(OF_IMAGES) == {"typos"} and len(CORRUPTIONS) == 9
    assert tuple(_DONE) == OF_IMAGES
    with pytest.raises(UserError, match="a corruption of images"):
        Corrupt("typos", 1)

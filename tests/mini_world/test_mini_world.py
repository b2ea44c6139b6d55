"""The drawn world, its data sets, the shipped tiny CLIP and the script that makes it."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip
import datasets
from clip.clip import load_state_dict
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError
from mini_world.data_sets import DrawnDataset, MiniShapes, scene_of
from mini_world.drawing import Look, draw, phrase, random_scenes
from mini_world.outlines import SHAPES
from mini_world.textures import COLOURS, GROUNDS, TEXTURES

REPO = Path(datasets.__file__).parent.parent
WEIGHTS = REPO / "mini_world" / "tiny_clip.pt"


def leaves(kind: type) -> list[type]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [kind]


SETS = [kind for kind in leaves(DrawnDataset) if kind.__module__ == "mini_world.data_sets"]


class Few(DrawnDataset):
    """Three classes, for the tests of writing and reading."""

    dataset_dir = "few"
    names = ("red star", "striped blue fabric", "tree on snow")
    per_class = {"train": 5, "val": 2, "test": 3}


def config(root: Path, shots: int = -1, classes: str = "all", seed: int = 1):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.SEED = str(root), shots, seed
    cfg.DATASET.SUBSAMPLE_CLASSES = classes
    return cfg


def test_drawing_is_a_function_of_the_seed():
    def pictures(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return draw(random_scenes(rng, 24), 48, Look(clutter=2, blur=0.5), rng)

    assert pictures(3).dtype == np.uint8
    assert pictures(3).shape == (24, 48, 48, 3)
    assert np.array_equal(pictures(3), pictures(3))
    assert not np.array_equal(pictures(3), pictures(4))


def test_what_is_drawn_is_what_was_asked_for():
    """A plain object in the middle has its colour; another shape covers other pixels."""
    look = Look(shift=0, turn=0, hue=0, light=1, noise=0, contrast=(1, 1), radius=(0.7, 0.7))
    for name, rgb in COLOURS.items():
        rng = np.random.default_rng(0)
        centre = draw(scene_of(f"{name} circle", 1, rng), 32, look, rng)[0, 16, 16]
        assert np.allclose(centre / 255, rgb, atol=0.01), name
    masks = set()
    for name in SHAPES:
        rng = np.random.default_rng(0)
        on_sand = draw(scene_of(f"blue {name} on sand", 1, rng), 64, look, rng)[0]
        masks.add((on_sand[..., 2] > on_sand[..., 0]).tobytes())
    assert len(masks) == len(SHAPES)


def test_phrases_read_as_class_names():
    assert phrase("star", "red", "striped", "sand") == "striped red star on sand"
    assert phrase(colour="red") == "red thing"


@pytest.mark.parametrize("kind", SETS, ids=lambda kind: kind.__name__)
def test_every_set_is_registered_and_its_names_compose(kind):
    assert DATASET_REGISTRY.get(kind.__name__) is kind
    assert 12 <= len(kind.names) <= 24
    assert len(set(kind.names)) == len(kind.names)
    words = {*COLOURS, *TEXTURES, *SHAPES, *GROUNDS, "fabric", "on"}
    assert {word for name in kind.names for word in name.split()} <= words
    for name in kind.names:
        scene = scene_of(name, 50, np.random.default_rng(0))
        assert scene.size == 50
        if "on" in name.split():  # what isn't said varies
            assert len(set(scene.colour)) > 1
    configs = [path.read_text() for path in (REPO / "configs" / "datasets").glob("mini_*.yaml")]
    assert sum(f'"{kind.__name__}"' in text for text in configs) == 1


def test_there_are_sister_sets_and_shifted_ones():
    shifted = [k for k in SETS if k is not MiniShapes and k.names == MiniShapes.names]
    assert len(SETS) - len(shifted) >= 3
    assert shifted and all(kind.look != MiniShapes.look for kind in shifted)


@pytest.mark.parametrize("name", ["red dragon", "red blue star", "large star"])
def test_a_name_outside_the_world_is_refused(name):
    with pytest.raises(ValueError, match="isn't a thing"):
        scene_of(name, 1, np.random.default_rng(0))


def test_files_are_drawn_once_and_decode(tmp_path):
    lists = Few(config(tmp_path))
    assert [len(part) for part in (lists.train_x, lists.val, lists.test)] == [15, 6, 9]
    assert lists.classnames == list(Few.names)
    for item in [*lists.train_x, *lists.val, *lists.test]:
        with Image.open(item.impath) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (56, 56))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert Few(config(tmp_path)).split_hash == lists.split_hash
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")} == before


def test_two_drawings_are_the_same(tmp_path):
    for folder in ("a", "b"):
        Few(config(tmp_path / folder))
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
            )


def test_png_where_there_is_no_quality(tmp_path):
    kind = type("FewPng", (Few,), {"quality": None, "dataset_dir": "few_png"})
    for item in kind(config(tmp_path)).test:
        with Image.open(item.impath) as image:
            assert image.format == "PNG"


def test_drawing_at_once_leaves_one_whole_set(tmp_path):
    failures = []

    def make() -> None:
        try:
            Few(config(tmp_path))
        except Exception as error:  # whatever it is, the test reports it
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.name for path in tmp_path.iterdir()] == ["few"]
    assert len(list(tmp_path.rglob("*.jpg"))) == 30


def test_what_a_killed_drawing_left_is_removed(tmp_path):
    (tmp_path / ".few.0123abcd" / "images").mkdir(parents=True)
    (tmp_path / ".few.mine").mkdir()  # not of a drawing
    Few(config(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".few.mine", "few"]


def test_another_versions_pictures_are_refused(tmp_path):
    Few(config(tmp_path))
    recipe = tmp_path / "few" / "recipe.json"
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "drawing": -1}))
    with pytest.raises(UserError, match="delete the folder"):
        Few(config(tmp_path))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        Few(config(tmp_path / "file"))


def test_shots_and_halves_work_as_for_any_data_set(tmp_path):
    base, new = (Few(config(tmp_path, 3, half)) for half in ("base", "new"))
    assert (len(base.train_x), len(new.train_x)) == (6, 3)
    assert base.fewshot_hash == new.fewshot_hash
    assert base.classnames + new.classnames == list(Few.names)
    assert (tmp_path / "few" / "split_fewshot" / "shot_3-seed_1.json").is_file()


def test_shifted_sets_are_test_images_alone(tmp_path):
    elsewhere = next(k for k in SETS if set(k.per_class) == {"test"})
    kind = type("OneElsewhere", (elsewhere,), {"names": MiniShapes.names[:2], "dataset_dir": "e"})
    lists = kind(config(tmp_path, shots=16))
    assert not lists.train_x and not lists.val
    assert len(lists.test) == 60


# ---------------------------------------------------------------- the shipped weights


@pytest.fixture(scope="module")
def tiny():
    return clip.load("TinyCLIP", device="cpu")


def zero_shot(tiny, kind: type, per_class: int) -> float:
    model, preprocess = tiny
    images, labels = [], []
    for label in range(len(kind.names)):
        pictures = kind.pictures(label)[1][:per_class]
        images += [preprocess(Image.fromarray(picture)) for picture in pictures]
        labels += [label] * per_class
    prompts = [kind.template.format(name) for name in kind.names]
    with torch.no_grad():
        logits, _ = model(torch.stack(images), clip.tokenize(prompts))
    return float((logits.argmax(1) == torch.tensor(labels)).float().mean())


def test_weights_are_small_plain_and_fp16():
    assert WEIGHTS.stat().st_size < 5e6
    state = torch.load(WEIGHTS, weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert state["token_embedding.weight"].is_sparse


def test_weights_know_every_word_they_need():
    rows = load_state_dict(str(WEIGHTS))["token_embedding.weight"].to_dense()
    texts = [kind.template.format(name) for kind in SETS for name in kind.names]
    known = rows[clip.tokenize([*texts, "a photo of a X X X X."]).unique().long()]
    assert bool((known.abs().sum(1) > 0).all())
    assert 100 < int((rows.abs().sum(1) > 0).sum()) < 1000


@pytest.mark.parametrize("kind", SETS, ids=lambda kind: kind.__name__)
def test_zero_shot_is_neither_chance_nor_perfect(tiny, kind):
    """Measured on all test images: see docs/mini_world.md."""
    assert 3 / len(kind.names) < zero_shot(tiny, kind, per_class=6) < 0.97


# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def script():
    from mini_world import pretraining

    return pretraining


def test_pretraining_resumes_where_it_was(script, tmp_path, monkeypatch):
    from mini_world.pretraining_command import parse

    monkeypatch.delitem(script.TESTS, "combination")  # 1,632 names to encode
    few = [
        "--steps",
        "2",
        "--batch",
        "4",
        "--pool",
        "12",
        "--warmup",
        "1",
        "--save-every",
        "1",
        "--eval-size",
        "4",
    ]
    for name, stops in (("whole", [[]]), ("cut", [["--stop-at", "1"], []])):
        for stop in stops:
            script.train(parse(["--out", str(tmp_path / f"{name}.pt"), *few, *stop]))
    whole, cut = (load_state_dict(str(tmp_path / f"{name}.pt")) for name in ("whole", "cut"))
    fresh = script.new_model(8).state_dict()
    assert whole.keys() == cut.keys() == fresh.keys()
    for name, value in whole.items():
        assert torch.equal(value.to_dense(), cut[name].to_dense()), name
    assert not list(tmp_path.glob("*.resume"))
    report = json.loads((tmp_path / "whole.json").read_text())
    assert set(report["zero_shot_held_out_combinations"]) >= {"shape", "colour", "texture"}


def test_captions_tell_the_truth(script):
    out = script.held_out(1)
    pool = script.draw_pool(1, 40, out)
    captions = script.Captions()
    for step in range(30):
        rng = np.random.default_rng(step)
        texts, which = captions.draw(pool, np.arange(40), rng)
        assert len(texts) == which.max() + 1
        for image, text in enumerate(np.array(texts)[which]):
            said = set(text.replace(".", " ").replace(",", " ").split())
            for kind in ("shape", "colour", "texture", "ground"):
                value = pool.attributes[kind][image]
                true = {script.NAMES[kind][value]} if value >= 0 else set()
                assert said & set(script.NAMES[kind]) <= true, (text, kind)


def test_held_out_combinations_are_kept_apart(script):
    out = script.held_out(1)
    for unseen in (False, True):
        made = script.draw_pool(1, 30, out, unseen=unseen).attributes
        assert set(out[made["shape"], made["colour"], made["texture"]]) == {unseen}

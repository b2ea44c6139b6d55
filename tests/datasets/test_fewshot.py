"""The kept few-shot samples: checked against the split, safe to share, the same everywhere."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import datasets  # noqa: F401 - registers the readers
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from tests.datasets.layouts import build, image, write_split

REPO = Path(__file__).parents[2]


def load(root: Path, shots: int = 2, seed: int = 1, name: str = "OxfordPets"):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, str(root)
    cfg.DATASET.NUM_SHOTS, cfg.SEED, cfg.VERBOSE = shots, seed, False
    return build_dataset(cfg)


@pytest.fixture
def pets(tmp_path) -> Path:
    root = tmp_path / "data"
    write_split(root, build("OxfordPets", root))
    return root


def kept(root: Path, shots: int = 2, seed: int = 1) -> Path:
    return root / "oxford_pets" / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"


def test_a_moved_data_folder_keeps_its_sample(pets, tmp_path):
    before = load(pets)
    text = kept(pets).read_text()
    moved = tmp_path / "elsewhere"
    pets.rename(moved)
    after = load(moved)
    assert kept(moved).read_text() == text
    assert after.fewshot_hash == before.fewshot_hash
    assert all(Path(item.impath).is_file() for item in after.train_x)


def test_the_kept_sample_is_what_is_read(pets):
    """Another sample of this split, put there by hand, is used as it is."""
    first = load(pets)
    content = json.loads(kept(pets).read_text())
    content["train"].reverse()
    kept(pets).write_text(json.dumps({"train": content["train"], "val": content["val"]}))
    again = load(pets)
    assert again.train_x == first.train_x[::-1]
    assert again.fewshot_hash != first.fewshot_hash


def without_last(content):
    content["train"].pop()


def twice(content):
    content["train"][0] = content["train"][1]


def unknown_image(content):
    content["train"][0][0] = "cat_1.jpg"


def other_label(content):
    content["val"][0][1] += 1


def other_split(content):
    content["split"] = "0" * 64


def no_val(content):
    del content["val"]


def no_rows(content):
    content["train"] = 5


@pytest.mark.parametrize(
    "damage", [without_last, twice, unknown_image, other_label, other_split, no_val, no_rows]
)
def test_a_sample_that_does_not_fit_is_drawn_anew(damage, pets, capsys):
    good = load(pets)
    text = kept(pets).read_text()
    content = json.loads(text)
    damage(content)
    kept(pets).write_text(json.dumps(content))
    capsys.readouterr()
    assert load(pets).train_x == good.train_x
    assert "anew" in capsys.readouterr().out
    assert kept(pets).read_text() == text


@pytest.mark.parametrize("text", ["", "[1]", '{"train": [', "\x00"])
def test_a_broken_file_is_drawn_anew(text, pets, capsys):
    good = load(pets)
    kept(pets).write_text(text)
    assert load(pets).train_x == good.train_x
    assert str(kept(pets)) in capsys.readouterr().out
    assert json.loads(kept(pets).read_text())["train"]


def test_a_changed_split_file_changes_the_sample(pets):
    old = load(pets)
    path = pets / "oxford_pets" / "split_zhou_OxfordPets.json"
    split = json.loads(path.read_text())
    split["train"], split["test"] = split["test"], split["train"]
    path.write_text(json.dumps(split))
    new = load(pets)
    assert new.split_hash != old.split_hash
    assert new.fewshot_hash != old.fewshot_hash
    names = {row[0] for row in split["train"]}
    assert {Path(item.impath).name for item in new.train_x} <= names


def test_hash_is_of_the_content(pets, tmp_path):
    """Equal for the same sample in another place; different for another seed or order."""
    other = tmp_path / "copy"
    write_split(other, build("OxfordPets", other))
    assert load(pets).fewshot_hash == load(other).fewshot_hash
    hashes = {load(pets, seed=seed).fewshot_hash for seed in (0, 1, 2)}
    assert len(hashes) == 3
    assert load(pets, shots=-1).fewshot_hash == ""


def test_no_seed_draws_each_time_and_keeps_nothing(pets):
    random.seed(5)
    hashes = {load(pets, seed=-1).fewshot_hash for _ in range(6)}
    assert len(hashes) > 1
    assert not (pets / "oxford_pets" / "split_fewshot").exists()


def test_a_folder_that_cannot_be_written_is_no_obstacle(pets, capsys, monkeypatch):
    good = load(pets)
    kept(pets).unlink()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert load(pets).train_x == good.train_x
    assert "No space left" in capsys.readouterr().out
    assert list(kept(pets).parent.iterdir()) == []  # nothing half-written stays


def test_processes_that_draw_at_once_agree(tmp_path):
    """No split file and no sample: three processes make both at the same time."""
    build("OxfordPets", tmp_path)
    code = (
        "import sys, datasets\n"
        "from dassl.config import get_cfg_default\n"
        "from dassl.data.datasets import build_dataset\n"
        "cfg = get_cfg_default()\n"
        f"cfg.DATASET.NAME, cfg.DATASET.ROOT = 'OxfordPets', {str(tmp_path)!r}\n"
        "cfg.DATASET.NUM_SHOTS, cfg.SEED, cfg.VERBOSE = 3, 1, False\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
        "for _ in range(5):\n"
        "    data = build_dataset(cfg)\n"
        "    print('hash', data.split_hash, data.fewshot_hash)\n"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:  # the starting shot
        run.stdin.close()
        run.stdin = None
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0] * 3, outputs
    hashes = {line for out, _ in outputs for line in out.splitlines() if line.startswith("hash")}
    assert len(hashes) == 1
    assert load(tmp_path, shots=3).fewshot_hash in hashes.pop()
    folder = tmp_path / "oxford_pets"
    assert [p.name for p in (folder / "split_fewshot").iterdir()] == ["shot_3-seed_1.json"]
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


READER = """
import os

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase

from .dtd import DescribableTextures as DTD
from .oxford_pets import OxfordPets


@DATASET_REGISTRY.register()
class DroppedIn(DatasetBase):
    dataset_dir = "dropped"

    def __init__(self, cfg):
        folder = os.path.join(os.path.abspath(cfg.DATASET.ROOT), self.dataset_dir)
        images, path = os.path.join(folder, "images"), os.path.join(folder, "split.json")
        if not os.path.exists(path):
            lists = DTD.read_and_split_data(images, new_cnames={"a": "first"})
            OxfordPets.save_split(*lists, path, images)
        train, val, test = OxfordPets.read_split(path, images)
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
        train, val, test = OxfordPets.subsample_classes(
            train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES
        )
        super().__init__(train_x=train, val=val, test=test)
"""


def test_a_reader_in_the_field_s_style_works_by_being_there(tmp_path):
    """It calls the helpers of the field's readers by their names."""
    shutil.copytree(REPO / "datasets", tmp_path / "datasets")
    (tmp_path / "datasets" / "dropped_in.py").write_text(READER)
    for name in "abc":
        for i in range(8):
            image(tmp_path / "data" / "dropped" / "images" / name / f"{i}.jpg")
    code = (
        "import datasets\n"
        "from dassl.config import get_cfg_default\n"
        "from dassl.data.datasets import build_dataset\n"
        "cfg = get_cfg_default()\n"
        "cfg.DATASET.NAME, cfg.DATASET.ROOT = 'DroppedIn', 'data'\n"
        "cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = 2, 'base'\n"
        "data = build_dataset(cfg)\n"
        "print(data.classnames, len(data.train_x), data.template)\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPO}"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "['first', 'b'] 4 a photo of a {}." in run.stdout

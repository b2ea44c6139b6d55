"""Features of an untouched image tower: the same from the tower, from memory and from disk."""

import json
import os
import shutil
from contextlib import contextmanager

import pytest
import torch

import train
import trainers
from dassl.engine import TRAINER_REGISTRY
from tuning import feature_cache

trainers.modules()
CACHED = ["CoOp", "DePT_CoCoOp", "CLIPAdapter", "ZeroshotCLIP"]
COMPARING = ["PromptSRC", "DePT_PromptSRC"]  # with the unprompted tower's features, in training
AUGMENTED = "('random_resized_crop', 'random_flip', 'normalize')"


@pytest.fixture(autouse=True)
def nothing_in_memory():
    feature_cache._memory.clear()


@pytest.fixture
def root(picture_root, tmp_path):
    """A data set of one's own: tests change its files and look at its cache."""
    return shutil.copytree(picture_root, tmp_path / "root", ignore=shutil.ignore_patterns(".cache"))


@pytest.fixture
def count_encoded(monkeypatch):
    """Numbers of images that the image tower saw, as a list that grows."""
    from clip.prompting import ImageEncoder

    seen, forward = [], ImageEncoder.forward

    def counting(self, image, *args):
        seen.append(len(image))
        return forward(self, image, *args)

    monkeypatch.setattr(ImageEncoder, "forward", counting)
    return seen


def cache_files(root):
    return sorted(root.glob(".cache/features/*.pt"))


def run(command, root, trainer, output, *extra, **options):
    options = {"INPUT__TRANSFORMS": AUGMENTED, **options}
    train.main(command(trainer, "--root", str(root), *extra, output=output, **options))
    metrics = output / "metrics.jsonl"
    losses = [json.loads(line)["loss"] for line in metrics.open()] if metrics.exists() else []
    return losses, json.loads((output / "result.json").read_text())["accuracy"]


@pytest.mark.parametrize("name", CACHED)
def test_cached_runs_equal_uncached_ones(command, root, tmp_path, count_encoded, name):
    plain = run(command, root, name, tmp_path / "plain", "--no-cache")
    assert not cache_files(root)
    uncached = list(count_encoded)
    feature_cache._memory.clear()
    first = run(command, root, name, tmp_path / "first")
    trained = bool(first[0])
    assert len(cache_files(root)) == 1 + 2 * trained  # test images, and the views of two epochs
    feature_cache._memory.clear()
    count_encoded.clear()
    again = run(command, root, name, tmp_path / "again")
    assert plain == first == again
    assert uncached and not count_encoded


@pytest.mark.parametrize("name", COMPARING)
def test_frozen_features_of_the_same_view_come_from_the_cache(
    command, root, tmp_path, count_encoded, name
):
    plain = run(command, root, name, tmp_path / "plain", "--no-cache")
    slow = run(command, root, name, tmp_path / "slow", "--no-cache", MODEL__FAST=False)
    assert plain[0] == pytest.approx(slow[0], rel=1e-5)
    before = sum(count_encoded)
    first = run(command, root, "CoOp", tmp_path / "coop")
    count_encoded.clear()
    again = run(command, root, name, tmp_path / "again")
    assert plain == again
    # Its own, prompted tower sees 2 epochs of 10 training images in batches of 4, and the tests.
    tested = len(json.loads((root / "split.json").read_text())["test"])
    assert sum(count_encoded) == 2 * 8 + tested < before
    assert first[0] != again[0]


def test_the_cache_is_every_methods(command, root, tmp_path, count_encoded):
    """CoOp's views are DePT_KgCoOp's; another seed has views of its own, but the same test."""
    run(command, root, "CoOp", tmp_path / "a")
    files = cache_files(root)
    count_encoded.clear()
    run(command, root, "DePT_KgCoOp", tmp_path / "b")
    assert cache_files(root) == files and not count_encoded
    run(command, root, "CoOp", tmp_path / "c", "--seed", "2")
    assert len(cache_files(root)) == len(files) + 2


def test_never_stale(command, root, tmp_path, backbone, monkeypatch):
    """Whatever features depend on, another one of it finds nothing under the old key."""
    options = {"OPTIM__MAX_EPOCH": 1}

    def new_files(*extra, **changed):
        feature_cache._memory.clear()
        before = set(cache_files(root))
        run(
            command, root, "CoOp", tmp_path / "run", *extra, "--overwrite", **{**options, **changed}
        )
        return len(set(cache_files(root)) - before)

    assert new_files() == 2
    assert new_files() == 0
    assert new_files(INPUT__INTERPOLATION="bilinear") == 2
    assert new_files(INPUT__TRANSFORMS="('random_flip', 'normalize')") == 2
    assert new_files(INPUT__PIXEL_MEAN="[0.4, 0.4, 0.4]") == 2
    assert new_files(DATALOADER__TEST__BATCH_SIZE=5) == 1
    assert new_files(TRAINER__COOP__PREC="bf16") == 2
    assert new_files(DATASET__NUM_SHOTS=1) == 1
    other = tmp_path / "other.pt"
    state = torch.load(backbone)
    state["visual.proj"] = state["visual.proj"] * 2
    torch.save(state, other)
    assert new_files("--backbone", str(other)) == 2
    split = json.loads((root / "split.json").read_text())
    image = root / split["test"][0][0]
    shutil.copyfile(root / split["train"][0][0], image)
    assert new_files() == 1
    os.utime(image, (1, 1))
    assert new_files() == 1
    # Another file with the same name, size and modification time.
    twin = image.with_name("twin")
    shutil.copyfile(image, twin)
    os.utime(twin, (1, 1))
    twin.replace(image)
    assert new_files() == 1
    monkeypatch.setattr(feature_cache, "code_digest", lambda: "another version of clip/")
    assert new_files() == 2


def test_skipped_images_are_skipped_again(command, root, tmp_path):
    """What was left out of a pass is not kept as if it had been whole."""
    run(command, root, "ZeroshotCLIP", tmp_path / "a", "--no-cache")
    split = json.loads((root / "split.json").read_text())
    (root / split["test"][0][0]).write_bytes(b"no image")
    for output in ("b", "c"):
        feature_cache._memory.clear()
        run(command, root, "ZeroshotCLIP", tmp_path / output, INPUT__ON_DECODE_ERROR="skip")
        result = json.loads((tmp_path / output / "result.json").read_text())
        assert result["skipped_images"] == 1
    assert not cache_files(root)


def test_prompted_towers_leave_no_features(command, root, tmp_path):
    untouched = {
        name: TRAINER_REGISTRY.get(name).method_class.image_tower_untouched
        for name in ("VPT", "MaPLe", "CoOp")
    }
    assert untouched == {"VPT": False, "MaPLe": False, "CoOp": True}
    run(command, root, "MaPLe", tmp_path / "run")
    assert not cache_files(root)


def test_predictions_are_the_same_from_the_cache(command, root, tmp_path):
    import numpy as np

    for output in ("a", "b"):
        feature_cache._memory.clear()
        run(command, root, "CoOp", tmp_path / output, TEST__SAVE_PREDICTIONS=True)
    a, b = (np.load(tmp_path / output / "predictions.npz") for output in ("a", "b"))
    assert set(a) == {"logits", "labels", "classnames", "paths"}
    for name in a:
        assert (a[name] == b[name]).all()


def test_validation_images_are_encoded_once_per_process(make_trainer, count_encoded):
    options = {"TEST__FINAL_MODEL": "best_val", "OPTIM__MAX_EPOCH": 3}
    trainer = make_trainer("CoOp", DATALOADER__FEATURE_CACHE="", **options)
    trainer.train()
    images = (len(trainer.train_loader_x.dataset) // 4 * 4) * 3
    images += len(trainer.test_loader.dataset)
    if trainer.val_loader is not None:
        images += len(trainer.val_loader.dataset)
    assert sum(count_encoded) == images


def test_what_another_run_encodes_meanwhile_is_read(
    command, root, tmp_path, count_encoded, monkeypatch, capsys
):
    """Whoever has the lock puts the features there before it is had here."""
    first = run(command, root, "CoOp", tmp_path / "first")
    aside = tmp_path / "aside"
    aside.mkdir()
    for file in cache_files(root):
        file.rename(aside / file.name)
    feature_cache._memory.clear()
    count_encoded.clear()
    entered = []

    @contextmanager
    def alone(self, key, wait):
        entered.append(wait())
        for file in aside.iterdir():
            file.rename(self.folder / file.name)
        yield True

    monkeypatch.setattr("dassl.utils.TensorCache.alone", alone)
    assert run(command, root, "CoOp", tmp_path / "second") == first
    assert entered == [True] and not count_encoded
    out = capsys.readouterr().out
    assert out.count("waiting for another run, which encodes them") == 1


def test_runs_that_keep_nothing_do_not_take_turns(
    command, root, tmp_path, count_encoded, monkeypatch
):
    waits = []

    @contextmanager
    def alone(self, key, wait):
        waits.append(wait())
        yield True

    monkeypatch.setattr("dassl.utils.TensorCache.alone", alone)
    monkeypatch.setattr("dassl.utils.TensorCache.put", lambda *_: False)
    run(command, root, "CoOp", tmp_path / "run")
    assert waits[0] and not any(waits[1:]) and count_encoded


def test_no_memory_halves_the_passes_and_says_so(command, root, tmp_path, monkeypatch, capsys):
    """The features are the same; those of the pass in which it happened aren't kept."""
    from tuning.trainer import PromptTrainer

    expected = run(command, root, "CoOp", tmp_path / "whole", "--no-cache")
    encode, sizes = PromptTrainer.encode_views, []

    def small(self, image):
        if len(image) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(image))
        return encode(self, image)

    monkeypatch.setattr(PromptTrainer, "encode_views", small)
    feature_cache._memory.clear()
    halved = run(command, root, "CoOp", tmp_path / "halved")
    assert halved[0] == pytest.approx(expected[0], rel=1e-5) and halved[1] == expected[1]
    said = "no GPU memory for 8 at once, so 4 from here on"
    out = capsys.readouterr().out
    assert out.count(said) == 1 and out.count("no GPU memory for 4 at once, so 2") == 1
    assert set(sizes) == {1, 2}
    assert len(cache_files(root)) == 2  # the second epoch's views, and the test images

"""predict.py: an image and a run in, classes with probabilities out."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import clip.clip
from dassl.utils import UserError, load_checkpoint, save_plain
from experiments.features import batches, load_run
from tuning import loading
from tuning import prediction as predict
from tuning.prediction import Predictor, class_list, find_images


def run(capsys, *arguments: object) -> str:
    predict.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_probabilities_are_those_of_the_evaluation(run_folders):
    trainer = load_run(run_folders["DePT_CoOp"])
    batch = next(batches(trainer))
    paths = [item.impath for item in trainer.data.dataset.test[: len(batch.labels)]]
    predictor = Predictor(run_folders["DePT_CoOp"])
    assert predictor.classes == trainer.data.classnames
    expected = batch.logits.softmax(dim=-1)
    for row, best in zip(expected, predictor(paths, top=len(predictor.classes)), strict=True):
        found = {guess.classname: guess.probability for guess in best}
        values = [found[name] for name in predictor.classes]
        np.testing.assert_allclose(values, row.numpy(), atol=1e-5)
        assert [g.probability for g in best] == sorted(found.values(), reverse=True)


def test_classes_of_ones_own(run_folders, picture_root):
    paths = [picture_root / "ant" / "0.png", Image.new("RGB", (50, 30))]
    for best in Predictor(run_folders["DePT_CoOp"], ["dog", "red car", "ant"])(paths, top=9):
        assert {guess.classname for guess in best} == {"dog", "red car", "ant"}
        assert sum(guess.probability for guess in best) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="twice"):
        Predictor(run_folders["CoOp"], ["dog", "dog"])


def test_a_checkpoint_file_stands_for_its_run(run_folders, picture_root):
    (checkpoint,) = run_folders["CoOp"].glob("*/model.pth.tar-2")
    image = [picture_root / "ant" / "0.png"]
    assert Predictor(checkpoint)(image) == Predictor(run_folders["CoOp"])(image)


def test_folders_globs_and_formats(run_folders, picture_root, tmp_path, capsys):
    options = ("--model", run_folders["CoOp"], "--top", 2)
    table = run(capsys, picture_root / "ant", f"{picture_root}/e*/[0-1].png", *options)
    assert table.count("%") == 2 * 12 and str(picture_root / "ant" / "0.png") in table
    out = tmp_path / "guesses.csv"
    assert run(capsys, picture_root / "ant", *options, "--format", "csv", "--out", out) == ""
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 20 and [row["rank"] for row in rows[:2]] == ["1", "2"]
    entries = json.loads(run(capsys, picture_root / "ant" / "0.png", *options, "--format", "json"))
    assert len(entries[0]["predictions"]) == 2


def test_a_damaged_file_among_others_is_named_and_passed_over(
    run_folders, picture_root, tmp_path, capsys
):
    shutil.copy(picture_root / "ant" / "0.png", tmp_path / "good.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    predict.main([str(tmp_path), "--model", str(run_folders["CoOp"])])
    captured = capsys.readouterr()
    assert "good.png" in captured.out and "half.png" not in captured.out
    assert captured.err.startswith("skipped: ") and "half.png" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere.png", "--model", "{run}"],
        ["{image}", "--model", "nowhere"],
        ["{image}", "--model", "{run}", "--top", "0"],
        ["{image}", "--model", "{run}", "--classes", ","],
        ["setup.cfg", "--model", "{run}"],
        ["{image}"],
    ],
)
def test_a_mistake_is_one_line(run_folders, picture_root, capsys, arguments):
    words = {"run": run_folders["CoOp"], "image": picture_root / "ant" / "0.png"}
    with pytest.raises(SystemExit) as stop:
        predict.main([argument.format(**words) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


# A run of somebody else's.


def copy_of(run: Path, folder: Path, **changed: str) -> Path:
    """A run whose config.yaml names other files."""
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["MODEL"]["BACKBONE"]["NAME"] = str(changed.get("backbone"))
    config["DATALOADER"]["FEATURE_CACHE"] = str(folder / "elsewhere")
    config["MODEL"]["INIT_WEIGHTS"] = str(folder / "nowhere")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_backbone_file_is_followed_only_if_it_is_the_recorded_one(
    run_folders, backbone, picture_root, tmp_path, monkeypatch
):
    read = []
    monkeypatch.setattr(clip.clip, "load_state_dict", lambda path: read.append(path) or 1 / 0)
    monkeypatch.setattr(loading, "_ENCODERS", {})
    other = tmp_path / "other.pt"
    other.write_bytes(b"anything")
    run = copy_of(run_folders["CoOp"], tmp_path / "other", backbone=other)
    with pytest.raises(UserError, match="other.pt is not the backbone .* say --backbone"):
        Predictor(run)
    run = copy_of(run_folders["CoOp"], tmp_path / "gone", backbone="/nowhere/b.pt")
    with pytest.raises(UserError, match="'/nowhere/b.pt', which isn't here: say --backbone"):
        Predictor(run)
    run = copy_of(run_folders["CoOp"], tmp_path / "silent", backbone=backbone)
    (run / "result.json").unlink()
    for path in run.glob("*/model*.pth.tar*"):
        checkpoint = load_checkpoint(path)
        del checkpoint["backbone_sha256"]
        save_plain(checkpoint, path)
    with pytest.raises(UserError, match="doesn't say which SHA-256 it had"):
        Predictor(run)
    assert not read
    monkeypatch.undo()
    moved = shutil.copy(backbone, tmp_path / "moved.pt")
    run = copy_of(run_folders["CoOp"], tmp_path / "same", backbone=moved)
    image = [picture_root / "ant" / "0.png"]
    assert Predictor(run)(image) == Predictor(run_folders["CoOp"])(image)
    assert not (run / "elsewhere").exists()


@pytest.mark.parametrize("entry", ["a", [1], {"a": 1}])
def test_classes_that_are_none(run_folders, tmp_path, entry):
    run = tmp_path / "run"
    shutil.copytree(run_folders["CoOp"], run)
    for path in run.glob("*/model*.pth.tar*"):
        save_plain({**load_checkpoint(path), "class_keys": entry}, path)
    with pytest.raises(UserError, match="'class_keys' holds|a class's name holds"):
        Predictor(run)


def test_a_checkpoint_of_the_original_code(run_folders, backbone, picture_root, tmp_path, capsys):
    run_ = Predictor(run_folders["CoOp"])
    (path,) = run_folders["CoOp"].glob("*/model.pth.tar-2")
    (ctx,) = load_checkpoint(path)["state_dict"].values()
    original = tmp_path / "model.pth.tar-50"
    torch.save({"state_dict": {"ctx": ctx}, "epoch": 50, "val_result": None}, original)
    words = ["--model", original, "--classes", ",".join(run_.classes), "--trainer", "CoOp"]
    words += ["--config-file", "configs/trainers/CoOp/mini.yaml", "--backbone", backbone]
    words += ["--dataset-config-file", "configs/datasets/image_folder.yaml"]
    image = picture_root / "ant" / "0.png"
    sizes = ["--opts", "INPUT.SIZE", "(32, 32)", "TRAINER.COOP.N_CTX", "3"]
    told = run(capsys, image, "--top", 9, *words, *sizes)
    capsys.readouterr()
    assert run(capsys, image, "--top", 9, "--model", run_folders["CoOp"]) == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--trainer", "CoOp"], "say --classes"),
        (["--opts", "OPTIM.LR", "1"], "go with --trainer"),
    ],
)
def test_options_of_a_checkpoint_without_a_run(words, told, run_folders, picture_root, capsys):
    with pytest.raises(SystemExit):
        run(capsys, picture_root / "ant" / "0.png", "--model", run_folders["CoOp"], *words)
    assert told in capsys.readouterr().err


def test_folders_are_searched_as_data_sets_are(tmp_path, capsys):
    for path in ("a/0.jpg", "a/.ipynb_checkpoints/0.jpg", "a/._0.jpg", "notes.txt", "store/1.JPG"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "store")
    found = find_images([str(tmp_path / "a")])
    assert found == [str(tmp_path / "a" / name) for name in ("0.jpg", "link/1.JPG")]
    assert f"{tmp_path / 'a'}: passed over 2 files: 2 hidden" in capsys.readouterr().err
    with pytest.raises(UserError, match="no image at"):
        find_images([str(tmp_path / "a" / ".ipynb_checkpoints" / "none")])


def test_class_names_with_commas_and_files_that_arent_there():
    assert class_list('cat, "comma, name",dog') == ["cat", "comma, name", "dog"]
    assert class_list("brown bear") == ["brown bear"]
    with pytest.raises(argparse.ArgumentTypeError, match="no such file: names.txt"):
        class_list("names.txt")


def test_an_image_of_which_little_is_left_is_told(run_folders, tmp_path, capsys):
    Image.new("I;16", (8, 8), 40000).save(tmp_path / "deep.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "usual.png")
    predict.main([str(tmp_path), "--model", str(run_folders["CoOp"])])
    told = capsys.readouterr().err
    assert f"{tmp_path / 'deep.png'} has more than 8 bits a channel" in told and "usual" not in told

"""A run's identity: what changes it, what doesn't; and the model API."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import train
from dassl.config import CfgNode
from dassl.config.identity import settings_of
from dassl.utils import UserError, load_checkpoint
from tests.conftest import tiny_clip
from tuning.options import parse_args, setup_cfg
from tuning.run import identity_of, is_done, open_run, standing


def cfg_of(words):
    return setup_cfg(parse_args(words))


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def data(picture_root, tmp_path):
    """A copy of the pictures that a test may change."""
    root = tmp_path / "pictures"
    shutil.copytree(picture_root, root, ignore=shutil.ignore_patterns(".cache", "*split*"))
    return root


def repainted(root):
    """Other pictures under the same names."""
    for path in (root / "ant").iterdir():
        picture = np.array(Image.open(path))
        Image.fromarray(255 - picture).save(path)


def relabeled(root):
    """The pictures of two classes change places, the split stays as it was drawn."""
    for i in range(10):
        one, other = (root / name / f"{i}.png" for name in ("ant", "cat"))
        pictures = one.read_bytes(), other.read_bytes()
        other.write_bytes(pictures[0])
        one.write_bytes(pictures[1])


def renamed(root):
    """A class has another name; the split is drawn anew."""
    (root / "ant").rename(root / "aardvark")
    for path in root.glob("*split*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("change", [repainted, relabeled, renamed])
def test_other_data_are_another_run(command, data, tmp_path, change):
    words = command("CoOp", "--root", str(data))
    train.main(words)
    kept = result(tmp_path / "run")
    assert standing(cfg_of(words)) == "complete" and is_done(words)
    change(data)
    with pytest.raises(UserError, match=r"another run's result \(other .*--overwrite"):
        train.main(words)
    assert result(tmp_path / "run") == kept
    with pytest.raises(UserError, match="another run's result"):
        is_done(words)


def test_another_root_with_the_same_content_is_the_same_run(command, data, tmp_path, capsys):
    train.main(command("CoOp", "--root", str(data)))
    moved = shutil.copytree(data, tmp_path / "moved")
    capsys.readouterr()
    train.main(command("CoOp", "--root", str(moved)))
    assert "is complete" in capsys.readouterr().out


def test_another_backbone_file_under_its_name_is_another_run(command, backbone, tmp_path):
    own = tmp_path / "own.pt"
    shutil.copy(backbone, own)
    words = command("CoOp", "--backbone", str(own))
    train.main(words)
    torch.save({k: v.half() for k, v in tiny_clip(seed=5).state_dict().items()}, own)
    with pytest.raises(UserError, match="another file for MODEL.BACKBONE.NAME"):
        train.main(words)


UNCHANGING = {
    "TRAINER.MAPLE.N_CTX": 3,  # another method's
    "DATALOADER.NUM_WORKERS": 1,
    "DATALOADER.FEATURE_CACHE_GB": 1.0,
    "DATALOADER.FEATURE_CACHE": "",
    "TRAIN.PRINT_FREQ": 3,
    "TEST.PER_CLASS_RESULT": True,
}
CHANGING = {
    "TRAINER.COOP.N_CTX": 2,
    "OPTIM.LR": 0.1,
    "SEED": 2,
    "DATASET.TEMPLATE": "a {}.",
    "DATASET.NUM_SHOTS": 1,
    "INPUT.INTERPOLATION": "bilinear",
}


@pytest.mark.parametrize("key", [*UNCHANGING, *CHANGING])
def test_which_settings_count(command, key):
    value = {**UNCHANGING, **CHANGING}[key]
    base = identity_of(cfg_of(command("CoOp")))
    changed = identity_of(cfg_of([*command("CoOp"), key, str(value)]))
    assert (base == changed) == (key in UNCHANGING)


def test_keys_that_other_code_adds_count():
    """A repository of the family puts its keys into the config itself, and declares nothing."""
    cfg = cfg_of([]).clone()
    cfg.defrost()
    cfg.TRAINER.ELSEWHERE = CfgNode({"N_CTX": 4})
    assert settings_of(cfg, None)["TRAINER.ELSEWHERE.N_CTX"] == 4
    assert "TRAINER.MAPLE.N_CTX" not in settings_of(cfg, None)


def test_a_newer_versions_key_is_at_its_default_in_an_older_result(command, tmp_path):
    words = command("CoOp")
    train.main(words)
    path = tmp_path / "run" / "result.json"
    older = json.loads(path.read_text())
    del older["identity"]["settings"]["OPTIM.RMSPROP_ALPHA"]
    older["identity"]["settings"]["OPTIM.GONE"] = 1
    path.write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"\(OPTIM.GONE 1 -> None\)"):
        standing(cfg_of(words))
    del older["identity"]["settings"]["OPTIM.GONE"]
    path.write_text(json.dumps(older))
    assert standing(cfg_of(words)) == "complete"


def test_a_result_of_before_is_not_replaced_unasked(command, tmp_path):
    words = command("CoOp")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text('{"accuracy": 50.0, "config_hash": "x"}')
    with pytest.raises(UserError, match="doesn't say what its numbers depend on"):
        train.main(words)
    train.main([*words, "--overwrite"])
    assert result(tmp_path / "run")["identity"]


def test_a_run_is_not_gone_on_with_on_other_data(make_trainer, command, data, tmp_path):
    words = command("CoOp", "--root", str(data), OPTIM__MAX_EPOCH=3)
    trainer = make_trainer("CoOp", OPTIM__MAX_EPOCH=3)
    del trainer
    from dassl.engine import build_trainer

    started = build_trainer(cfg_of(words))
    step, calls = started.forward_backward, []

    def dies(batch):
        calls.append(1)
        if len(calls) > started.num_batches:
            raise RuntimeError("killed")
        return step(batch)

    started.forward_backward = dies
    with pytest.raises(RuntimeError, match="killed"):
        started.train()
    repainted(data)
    with pytest.raises(UserError, match="unfinished run.*other"):
        train.main(words)
    with pytest.raises(UserError, match="other"):
        train.main(
            command(
                "CoOp", "--root", str(data), "--resume", str(tmp_path / "run"),
                output=tmp_path / "other", OPTIM__MAX_EPOCH=3,
            )
        )  # fmt: skip


# Evaluation.


def test_an_evaluation_needs_nothing_but_the_run(command, tmp_path, capsys):
    options = {"TRAINER__COOP__CLASS_TOKEN_POSITION": "front", "DATASET__SUBSAMPLE_CLASSES": "base"}
    train.main(command("DePT_CoOp", **options))
    words = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    train.main([*words, "--output-dir", str(tmp_path / "again")])
    assert result(tmp_path / "again")["accuracy"] == result(tmp_path / "run")["accuracy"]
    assert "Unlike" not in capsys.readouterr().out
    changed = ["--output-dir", str(tmp_path / "b"), "TRAINER.COOP.CLASS_TOKEN_POSITION", "end"]
    train.main([*words, *changed])
    said = capsys.readouterr().out
    assert "Unlike the run that is tested: TRAINER.COOP.CLASS_TOKEN_POSITION front -> end" in said


def test_an_evaluation_without_a_model_and_a_model_without_one(command, tmp_path):
    with pytest.raises(UserError, match="--model-dir RUN"):
        train.main(command("CoOp", "--eval-only"))
    with pytest.raises(UserError, match="MODEL.INIT_WEIGHTS"):
        train.main(command("CoOp", "--model-dir", str(tmp_path)))
    train.main(command("ZeroshotCLIP", "--eval-only"))  # nothing is trained


def test_a_test_is_repeated_when_its_model_was_trained_anew(command, tmp_path, capsys):
    train.main(command("CoOp"))
    words = ["--eval-only", "--model-dir", str(tmp_path / "run"), "--output-dir"]
    words += [str(tmp_path / "test")]
    train.main(words)
    capsys.readouterr()
    train.main(words)
    assert "is complete" in capsys.readouterr().out
    train.main([*command("CoOp", OPTIM__LR=0.01), "--overwrite"])
    capsys.readouterr()
    train.main([*words, "OPTIM.LR", "0.0035"])
    assert "earlier model; testing this one" in capsys.readouterr().out


# The model.


def test_three_lines_to_a_prediction(run_folders, picture_root):
    run = open_run(run_folders["DePT_CoOp"])
    image = Image.open(picture_root / "ant" / "0.png").convert("RGB")
    logits = run.logits([run.preprocess(image)])
    assert logits.shape == (1, len(run.classnames)) and logits.dtype == torch.float32
    method = run.method()
    with torch.no_grad():
        again = method.logits(method.features(run.preprocess(image)[None]))
    torch.testing.assert_close(again, logits)
    assert run.template == "a photo of a {}." and run.epoch == 2
    assert run.identity == load_checkpoint(run.checkpoint_path)["identity"]


def test_a_folders_template_is_the_runs(command, data, tmp_path):
    (data / "template.txt").write_text("a blurry scan of the {}.")
    train.main(command("KgCoOp", "--root", str(data)))
    assert open_run(tmp_path / "run").template == "a blurry scan of the {}."


def test_the_model_is_the_trainers_own(command, tmp_path):
    """Another method's leftover beside it isn't looked at; epoch 10 comes after 9."""
    train.main(command("CoOp", OPTIM__MAX_EPOCH=10, TRAIN__CHECKPOINT_FREQ=1))
    folder = tmp_path / "run"
    shutil.copytree(folder / "prompt_learner", folder / "a_leftover")
    for path in (folder / "a_leftover").iterdir():
        path.write_bytes(b"no checkpoint")
    run = open_run(folder)
    assert run.epoch == 10 and run.checkpoint_path.parent.name == "prompt_learner"
    assert open_run(folder / "prompt_learner" / "model.pth.tar-9").epoch == 9


def test_own_class_names_leave_the_head_out_and_say_so(run_folders, capsys):
    run = open_run(run_folders["DePT_CoOp"])
    assert run.method(["dog", "cat"]).rows is None
    assert "The CAT head is left out" in capsys.readouterr().err


def _no_entries(run, checkpoint):
    torch.save({}, checkpoint)


def _imaginary(run, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {k: v.to(torch.complex64) for k, v in content["state_dict"].items()}
    torch.save(content, checkpoint)


def _cut_config(run, checkpoint):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text[: text.index("TRAINER:")])


@pytest.mark.parametrize(
    ("damage", "named", "told"),
    [
        (_no_entries, "model.pth.tar-2", "has no entry 'state_dict'"),
        (_imaginary, "model.pth.tar-2", "holds complex64 values"),
        (_cut_config, "config.yaml", "names no trainer"),
    ],
)
def test_a_damaged_runs_file_is_named(run_folders, tmp_path, damage, named, told):
    run = shutil.copytree(run_folders["CoOp"], tmp_path / "run")
    (checkpoint,) = run.glob("*/model.pth.tar-2")
    damage(run, checkpoint)
    with pytest.raises(UserError, match=f"{named}.*{told}"):
        open_run(run).method()

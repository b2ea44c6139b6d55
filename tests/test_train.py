"""The command line: what a person types, and mistypes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from tests.conftest import arguments, tiny_clip

REPO = Path(__file__).parents[1]


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / "train.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO)


def test_help_needs_no_torch():
    code = "import sys, train; train.parse_runs([]); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert out.stdout.strip() == "False", out.stderr
    helped = run("--help")
    assert helped.returncode == 0
    for option in (
        *("--root", "--seed", "--trainer", "--dataset-config-file", "--config-file"),
        *("--output-dir", "--eval-only", "--model-dir", "--load-epoch", "--no-train"),
        *("--resume", "--transforms", "--backbone", "--head", "KEY VALUE"),
    ):
        assert option in helped.stdout


def test_a_mistake_is_one_line_and_status_2():
    """The whole way, once; the other mistakes below in this process."""
    out = run("--trainer", "DePT_Coop")
    assert out.returncode == 2
    assert out.stderr.count("\n") == 1
    assert out.stderr.startswith("error: unknown trainer 'DePT_Coop' (did you mean 'DePT_CoOp'")


def test_a_short_run_loads_no_compiler(command):
    """Nor torchvision: each takes longer than the run. PyTorch 2.6 loads sympy by itself."""
    code = (
        "import sys, train; train.main(sys.argv[1:])\n"
        "heavy = {'torchvision', 'sympy', 'torch._dynamo.convert_frame', 'sklearn', 'matplotlib'}\n"
        "print('loaded:', *sorted(heavy & set(sys.modules)))"
    )
    views = {"INPUT.TRANSFORMS": "('random_resized_crop', 'random_flip', 'normalize')"}
    words = command("DePT_CoOp", **views)
    out = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    *told, loaded = out.stdout.splitlines()
    assert any("Finish training" in line for line in told)
    own = {"sympy"} if torch.__version__.startswith("2.6.") else set()
    assert set(loaded.split()[1:]) <= own, loaded


@pytest.mark.parametrize(
    "words,message",
    [
        ([], "TRAINER.NAME is not set"),
        (["--trainer", "CoOp"], "DATASET.NAME is not set"),
        (["--traner", "CoOp"], "unrecognized arguments: --traner"),
        (["--seed", "one"], "--seed: 'one' is no whole number"),
        (["--dataset-config-file", "configs/datasets/oxford_pet.yaml"], "'oxford_pets.yaml'"),
        (["OPTIM.MAX_EPOHC", "3"], "did you mean 'OPTIM.MAX_EPOCH'"),
        (["OPTIM.MAX_EPOCH"], "options come in pairs KEY VALUE"),
        (["OPTIM.MAX_EPOCH", "many"], "OPTIM.MAX_EPOCH takes a value of type int"),
        (["TRAINER.DEPT.WIEGHT", "0.5"], "did you mean 'TRAINER.DEPT.WEIGHT'"),
    ],
)
def test_mistyped_words(capsys, monkeypatch, words, message):
    monkeypatch.chdir(REPO)
    with pytest.raises(SystemExit) as stopped, train.user_errors():
        train.main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "options,message",
    [
        ({"DATASET__NAME": "OxfordPet"}, "did you mean 'OxfordPets'"),
        ({"DATASET__ROOT": "/nowhere"}, "/nowhere"),
        ({"MODEL__BACKBONE__NAME": "ViT-B16"}, "did you mean 'ViT-B/16'"),
        ({"INPUT__SIZE": "(224, 224)"}, "takes 32 x 32 images"),
        ({"TRAINER__COOP__PREC": "fp8"}, "fp32, fp16, bf16, amp"),
        ({"TRAINER__COOP__CLASS_TOKEN_POSITION": "back"}, "end, middle, front"),
        ({"TRAINER__COOP__N_CTX": 90}, "the text tower takes 77"),
        ({"MODEL__INIT_WEIGHTS": "nowhere.pth"}, "nowhere.pth"),
        ({"OPTIM__NAME": "sdg"}, "sgd"),
        ({"INPUT__TRANSFORMS": "('random_flp',)"}, "random_flip"),
        ({"TRAINER__DEPT__WEIGHT": 3.0}, "between 0 and 1"),
    ],
)
def test_wrong_values(command, options, message):
    with pytest.raises(train.UserError, match=message.replace("(", r"\(")):
        train.main(command("DePT_CoOp", **options))


def test_models_that_are_not_there(command, tmp_path):
    with pytest.raises(train.UserError, match="no such model directory"):
        train.main(command("CoOp", "--eval-only", "--model-dir", str(tmp_path / "none")))
    train.main(command("CoOp", output=tmp_path / "coop"))
    there = ("--eval-only", "--model-dir", str(tmp_path / "coop"))
    with pytest.raises(train.UserError, match="no checkpoint of epoch 7"):
        train.main(command("CoOp", *there, "--load-epoch", "7"))
    with pytest.raises(train.UserError, match="another method"):
        train.main(command("CoCoOp", *there, output=tmp_path / "other"))
    with pytest.raises(train.UserError, match="ctx has shape"):
        train.main(command("CoOp", *there, TRAINER__COOP__N_CTX=5, output=tmp_path / "other"))


def test_another_backbone_is_refused(command, tmp_path):
    train.main(command("CoOp", output=tmp_path / "coop"))
    torch.save(tiny_clip(seed=5).state_dict(), tmp_path / "other.pt")
    words = command("CoOp", "--eval-only", "--model-dir", str(tmp_path / "coop"))
    words += ["MODEL.BACKBONE.NAME", str(tmp_path / "other.pt"), "OUTPUT_DIR", str(tmp_path / "x")]
    with pytest.raises(train.UserError, match="trained on another backbone"):
        train.main(words)


def test_resnets_take_no_image_prompts(picture_root, tmp_path):
    resnet = tiny_clip(
        vision_layers=(1, 1, 1, 1), vision_patch_size=None, image_resolution=64, embed_dim=64
    )
    file = tmp_path / "rn.pt"
    torch.save(resnet.state_dict(), file)

    def words(trainer):
        size = {"INPUT.SIZE": "(64, 64)", "OPTIM.MAX_EPOCH": 1, "TEST.SAVE_PREDICTIONS": True}
        return arguments(trainer, picture_root, file, tmp_path / trainer, **size)

    for trainer in ("MaPLe", "VPT", "DePT_PromptSRC"):
        with pytest.raises(train.UserError, match="a ResNet takes none: .* a ViT"):
            train.main(words(trainer))
    for trainer in ("DePT_CoOp", "CoCoOp", "KgCoOp", "CLIPAdapter", "ZeroshotCLIP2"):
        train.main(words(trainer))
        result = json.loads((tmp_path / trainer / "result.json").read_text())
        with np.load(tmp_path / trainer / "predictions.npz") as kept:
            hits = kept["logits"].argmax(axis=1) == kept["labels"]
        assert len(hits) == 15
        assert result["accuracy"] == pytest.approx(100 * hits.mean())


def test_zero_shot_needs_no_training(command, tmp_path, capsys):
    train.main(command("ZeroshotCLIP"))
    assert "nothing to train" in capsys.readouterr().out
    assert (tmp_path / "run" / "result.json").is_file()


def test_text_features_are_computed_once_per_evaluation(make_trainer, monkeypatch):
    trainer = make_trainer("DePT_CoOp")
    calls = []
    encode = trainer.method.method.encode_text
    monkeypatch.setattr(trainer.method.method, "encode_text", lambda: calls.append(1) or encode())
    assert len(trainer.test_loader) > 1
    first = trainer.test()
    assert len(calls) == 1
    assert trainer.test() == first
    assert len(calls) == 1
    with torch.no_grad():
        trainer.method.trained()["context.ctx"].add_(1.0)
    trainer.test()
    assert len(calls) == 2


def test_a_csc_context_is_not_applied_to_other_classes(command, tmp_path):
    csc = {"TRAINER__COOP__CSC": True}
    train.main(command("CoOp", output=tmp_path / "b", DATASET__SUBSAMPLE_CLASSES="base", **csc))
    there = ("--eval-only", "--model-dir", str(tmp_path / "b"), "--output-dir", str(tmp_path / "n"))
    with pytest.raises(train.UserError, match="can't be applied"):
        train.main(command("CoOp", *there, DATASET__SUBSAMPLE_CLASSES="new", **csc))

"""The benchmark runs on tiny towers, and what it compares is equal."""

import json
import subprocess
import sys
from functools import cache

import pytest

from benchmarks import process_timing, speed, timing
from benchmarks.method_setup import MethodSetup, Settings, images, method_names
from clip.prompting import text as text_tower
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tests.registered import some_twins, trains

TINY = ("--backbone", "tiny", "--classes", "3", "--repeats", "1", "--images", "2")


@pytest.fixture(scope="module")
def machine_once():
    """What is said of the machine is measured for all methods together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed.timing, "onednn_ratios", cache(timing.onednn_ratios))
        patch.setattr(speed.timing, "matmul_gflops", cache(timing.matmul_gflops))
        yield


@pytest.mark.usefixtures("machine_once")
@pytest.mark.parametrize("name", some_twins(method_names()))
def test_every_method_is_measured_beside_the_plain_path(name):
    parts = ("--only", "steps", "evaluation", "--test-batch", "5")
    (row,) = speed.main([*TINY, *parts, "--methods", name])["rows"]
    assert ("step" in row) == trains(name)
    alike = not TRAINER_REGISTRY.get(name).method_class.draws_inside  # steps of both paths
    assert row["logit_difference"] < 1e-3 or not alike
    assert row["evaluation_text_kept"]["plain"] <= row["evaluation"]["plain"] * 1.5
    for part in ("step", "step_with_views") if trains(name) else ():
        assert row[part]["ratio"] == row[part]["plain"] / row[part]["fast"] > 0
    if trains(name):
        assert row["loss_difference"] < 1e-3 or not alike
        assert row["gflop"]["plain"] > row["gflop"]["fast"] > 0
        # What no product here is fast enough for: no step exceeds it.
        assert 0 < row["floor"]["fast"] <= row["step"]["fast"]
        assert row["step_cpu"]["fast"] > 0 and row["image_share"] > 0


def test_peak_memory_json_and_plot(tmp_path, capsys):
    files = ("--json", str(tmp_path / "speed.json"), "--plot", str(tmp_path / "speed.png"))
    speed.main([*TINY, "--only", "memory", "steps", "--methods", "DePT_CoOp", *files, "--markdown"])
    (row,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert row["memory"]["plain"] > 50
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    ratio = f"{row['step']['ratio']:.1f}"
    printed = capsys.readouterr().out
    assert (
        "| method | step | … CPU s | … with views | … at most | memory | image share |\n" in printed
    )
    assert f"| DePT_CoOp | {ratio} |" in printed


def test_memory_of_the_fast_path_alone(tmp_path, capsys):
    alone = ["--methods", "CoOp", "--fast-alone", "--only", "memory"]
    (row,) = speed.main([*TINY, *alone, "--plot", str(tmp_path / "speed.png")])["rows"]
    assert row["memory"]["plain"] is None and row["memory"]["fast"] > 50
    assert "→" not in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(UserError, match="--only memory"):
        speed.main([*TINY, *alone, "steps"])


def test_whole_runs(monkeypatch):
    """What is timed is what is said to be; the times themselves are made up here."""
    commands = []

    def python(*words):
        commands.append(" ".join(words))
        seconds = 6.0 if "MODEL.FAST False" in commands[-1] else 3.0
        return timing.Time(seconds, 2 * seconds)

    monkeypatch.setattr(process_timing, "_python", python)
    only = ["--only", "runs", "--methods", "DePT_CoOp", "ZeroshotCLIP", "--repeats", "1"]
    result = speed.main([*TINY, *only])
    assert set(result["start_up"]) == {"train.py --help", "first step"}
    assert [row["run"]["ratio"] for row in result["rows"]] == [2.0, 2.0]
    assert [row["run_cpu"]["fast"] for row in result["rows"]] == [6.0, 6.0]
    assert [row["seeds"]["ratio"] for row in result["rows"]] == [3.0, 3.0]
    mine = [command for command in commands if "--trainer DePT_CoOp" in command]
    assert [command.split("--seed ")[1].split(" --")[0] for command in mine] == [
        *("1", "1", "1"),  # the data are drawn; plain; fast
        *("1", "2", "3", "1 2 3"),
    ]
    assert all("--no-cache" in command for command in mine)


def test_plain_path_goes_through_all_tokens(monkeypatch):
    """What stands after the longest text, too, as public code does."""
    lengths = []

    def plain_block(block, changes, x, causal):
        lengths.append(x.shape[1])
        return own(block, changes, x, causal)

    own = text_tower.plain_block
    monkeypatch.setattr(text_tower, "plain_block", plain_block)
    settings = Settings("CoOp", "tiny", classes=2)
    setup = MethodSetup(settings, settings.model(), fast=False)
    setup.score(setup.encode(images(2, setup.model)), fresh=True)
    assert set(lengths) == {77}


def test_plain_path_encodes_the_text_at_every_batch():
    """Otherwise the comparison would flatter nobody, and measure nothing."""
    settings = Settings("CoOp", "tiny", classes=2)
    model = settings.model()
    calls = []
    for fast in (True, False):
        setup = MethodSetup(settings, model, fast)
        forward = setup.method.encoders.text.forward
        setup.method.encoders.text.forward = lambda *a, f=forward: calls.append(1) or f(*a)
        features = setup.encode(images(2, model))
        setup.score(features, fresh=True)
        setup.score(features, fresh=True)
        setup.score(features, fresh=False)
        assert len(calls) == 2
        calls.clear()


PUBLIC = {
    "train.py": """
from trainers import own


def extend_cfg(cfg):
    cfg.TRAINER.COOP = type(cfg)({"PREC": "fp16"})
""",
    "clip/__init__.py": "",
    "clip/clip.py": """
_MODELS = {"ViT-B/16": ""}


def _download(url):
    raise OSError
""",
    "trainers/__init__.py": "",
    "trainers/own.py": """
import torch
from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX


@TRAINER_REGISTRY.register()
class CoOp(TrainerX):
    def build_model(self):
        assert self.cfg.TRAINER.COOP.PREC == "fp32" and len(self.dm.dataset.classnames) == 3
        state = torch.load(
            clip._download(clip._MODELS[self.cfg.MODEL.BACKBONE.NAME]), weights_only=True
        )
        self.model = torch.nn.Linear(state["text_projection"].shape[1], 3)
        self.register_model("own", self.model)

    def forward_backward(self, batch):
        image, label, *_ = batch["img"], batch["label"]
        assert len(image) == len(label)
        self.model_inference(image).sum().backward()
        print("noise")
        return {"loss": 0.0}

    def model_inference(self, image):
        return self.model(image.flatten()[: self.model.in_features])
""",
}


def test_a_public_implementation_is_imported_from_its_folder(tmp_path):
    for name, text in PUBLIC.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    parts = ("--only", "steps", "evaluation", "--against", str(tmp_path))
    (row,) = speed.main([*TINY, *parts, "--methods", "CoOp"])["rows"]
    for name in ("step_public", "step_public_cpu", "evaluation_public"):
        assert row[name]["plain"] > 0 and row[name]["ratio"] > 0
    (tmp_path / "trainers" / "own.py").write_text("import no_such_module")
    with pytest.raises(UserError, match="--against: .*no_such_module"):
        speed.main([*TINY, *parts, "--methods", "CoOp"])
    with pytest.raises(UserError, match=r"no train\.py"):
        speed.main([*TINY, "--against", str(tmp_path / "clip")])


def test_mistakes_are_one_line():
    for wrong in (["--methods", "CoOops"], ["--classes", "0"], ["--sideways"]):
        with pytest.raises(UserError):
            speed.main([*TINY, *wrong])
    script = [sys.executable, speed.__file__, "--backbone", "ViT-Z/1"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown backbone 'ViT-Z/1'")


def test_scaling(capsys):
    result = speed.main([*TINY, "--only", "steps", "evaluation", "--methods", "CoOp", "--full"])
    rows = {row["method"]: row for row in result["scaling"]}
    assert [rows[f"classes {n}"]["classes"] for n in (10, 50, 200)] == [10, 50, 200]
    assert [rows[f"batch {n}"]["batch"] for n in (1, 8, 32)] == [1, 8, 32]
    floor = [rows[f"classes {n}"]["gflop"] for n in (10, 50, 200)]
    assert floor[0]["fast"] < floor[1]["fast"] < floor[2]["fast"]
    assert rows["tested 10,000"]["images"] == 10_000
    assert "classes 200" in capsys.readouterr().out

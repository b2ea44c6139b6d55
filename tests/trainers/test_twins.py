"""DePT is registered around every method that declares a fit to the labels."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import trainers
from clip.prompting import Encoders
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tests.conftest import tiny_clip
from trainers.dept import CATHead, DePT, DePTMixin, can_be_wrapped, register_twins
from tuning.method import Classes, Features, Method
from tuning.naming import bare_name, is_wrapped, wrapped_name
from tuning.trainer import PromptTrainer

trainers.modules()
NAMES = sorted(TRAINER_REGISTRY.registered_names())
REPO = Path(__file__).parents[2]


@pytest.fixture
def registry(monkeypatch):
    """The registry, as it was again afterwards."""
    monkeypatch.setattr(TRAINER_REGISTRY, "_objects", dict(TRAINER_REGISTRY._objects))
    return TRAINER_REGISTRY


@pytest.mark.parametrize("name", [name for name in NAMES if not is_wrapped(name)])
def test_every_method_that_fits_labels_has_a_twin(name):
    trainer = TRAINER_REGISTRY.get(name)
    assert can_be_wrapped(trainer) == (wrapped_name(name) in NAMES)
    if can_be_wrapped(trainer):
        twin = TRAINER_REGISTRY.get(wrapped_name(name))
        assert twin.bare is trainer and issubclass(twin, trainer)
        assert twin.method_class is trainer.method_class
        # Runs with a step of their own aren't trained side by side.
        weight = ("TRAINER.DEPT.WEIGHT",) if trainer.may_differ else ()
        assert twin.may_differ == (*trainer.may_differ, *weight)


def test_what_is_not_wrapped():
    bare = {bare_name(name) for name in NAMES if is_wrapped(name)}
    assert bare == {
        *(
            "CLIPAdapter",
            "CoCoOp",
            "CoOp",
            "EPT",
            "IPT",
            "KgCoOp",
            "LAMP",
            "LASP",
            "CLIP_LoRA",
            "MMA",
            "MMRL",
            "MMRLpp",
            "MaPLe",
            "MP2",
            "PRE",
            "PromptSRC",
            "SPT",
            "VPT",
            "InfoPrompt",
            "StablePT",
            "TCP",
            "ProMetaR",
            "CaPT_CoOp",
            "CaPT_KgCoOp",
            "CoPrompt",
            "CoPromptTemplates",
            "SkipT",
            "DPC_CoOp",
            "DPC_KgCoOp",
            "DPC_MaPLe",
            "DPC_PromptSRC",
        ),
    }
    assert not any(can_be_wrapped(TRAINER_REGISTRY.get(wrapped_name(name))) for name in bare)


@pytest.mark.parametrize(
    "name,folder",
    [
        ("CoOp", "PromptLearner"),
        ("CLIPAdapter", "PromptLearner"),
        ("MaPLe", "MultiModalPromptLearner"),
        ("PromptSRC", "VLPromptLearner"),
        ("CaPT_KgCoOp", "learnable_params"),
    ],
)
def test_checkpoints_lie_where_the_released_code_has_them(name, folder):
    assert TRAINER_REGISTRY.get(wrapped_name(name)).model_name == folder


def test_baselines_know_nothing_of_dept():
    for file in (REPO / "trainers").glob("*.py"):
        if file.stem not in ("dept", "__init__"):
            assert not re.search(r"DePT(_|Mixin)|\bdept\b", file.read_text("utf-8")), file.name


def test_twins_can_be_imported():
    code = "from trainers.dept import DePT_CoOp; print(DePT_CoOp.bare.__name__)"
    out = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert out.stdout.split() == ["CoOp"], out.stderr
    with pytest.raises(ImportError, match="DePT_Nothing"):
        from trainers.dept import DePT_Nothing  # noqa: F401


class TwoFits(Method):
    """Two losses fit the labels, and one doesn't."""

    label_fit = ("coarse", "fine")

    def losses(self, features, label):
        fine = F.cross_entropy(self.itm_logits(features), label)
        return {"coarse": 3 * fine, "fine": fine, "kg": torch.tensor(0.25)}


class Fitting(PromptTrainer):
    method_class = TwoFits
    config_node = "COOP"


def wrapped(method_class) -> DePT:
    classes = Classes(["A", "B"], ["a", "b"])
    method = method_class(Encoders(tiny_clip()), classes)
    return DePT(method, CATHead(32, 2), weight=0.75)


def test_declared_losses_are_scaled_and_others_are_not():
    model, x = wrapped(TwoFits), Features(torch.randn(3, 32), torch.randn(2, 32))
    label = torch.tensor([0, 1, 1])
    bare, losses = model.method.losses(x, label), model.losses(x, label)
    assert list(losses) == ["coarse", "fine", "kg", "cat"]
    for name, share in (("coarse", 0.25), ("fine", 0.25), ("kg", 1)):
        torch.testing.assert_close(losses[name], share * bare[name])
    cat = model.cat.loss(x, label, model.encoders.temperature)
    torch.testing.assert_close(losses["cat"], 0.75 * cat)


class Misnamed(TwoFits):
    label_fit = ("itm",)


class NamedLikeDePTs(TwoFits):
    def losses(self, features, label):
        return {**super().losses(features, label), "cat": torch.tensor(0.0)}


@pytest.mark.parametrize("method", [Misnamed, NamedLikeDePTs])
def test_losses_that_do_not_fit_the_declaration_are_named(method):
    x = Features(torch.randn(3, 32), torch.randn(2, 32))
    with pytest.raises(UserError, match=f"{method.__name__} declares .* gives coarse, fine, kg"):
        wrapped(method).losses(x, torch.tensor([0, 1, 1]))


def test_a_file_that_is_added_gets_its_twin(registry):
    registry.register(Fitting)
    register_twins()
    assert registry.get("DePT_Fitting").bare is Fitting
    register_twins()  # as often as modules are asked for
    assert registry.get("DePT_Fitting").may_differ == ("SEED", "TRAINER.DEPT.WEIGHT")


def test_a_twin_of_its_own_stays(registry):
    own = registry.register(type("DePT_Fitting", (DePTMixin, Fitting), {"model_name": "mine"}))
    registry.register(Fitting)
    register_twins()
    assert registry.get("DePT_Fitting") is own and own.bare is Fitting


def test_another_trainer_of_a_twins_name_is_left_out(registry, capsys):
    registry.register(type("DePT_Fitting", (PromptTrainer,), {"__module__": "trainers.stranger"}))
    registry.register(Fitting)
    register_twins()
    assert issubclass(registry.get("DePT_Fitting"), DePTMixin)
    assert "trainers.stranger's DePT_Fitting left out" in capsys.readouterr().err


def test_the_twin_of_a_step_of_its_own_is_not_stacked_either(registry):
    class StepOfItsOwn(Fitting):
        def forward_backward(self, batch):
            return super().forward_backward(batch)

    registry.register(StepOfItsOwn)
    register_twins()
    assert registry.get("DePT_StepOfItsOwn").may_differ == ()
    assert registry.get("DePT_StepOfItsOwn").own_step() == ["forward_backward"]

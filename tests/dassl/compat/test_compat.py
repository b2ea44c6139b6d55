"""What code written for Dassl imports is there, and does what Dassl's does."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from dassl.compat import MODULES
from dassl.config import get_cfg_default
from dassl.optim.lr_scheduler import (
    ConstantWarmupScheduler,
    LinearWarmupScheduler,
    build_lr_scheduler,
)
from dassl.utils import UserError, save_plain


@pytest.mark.parametrize(
    "line",
    [
        "from dassl.optim.radam import RAdam",
        "from dassl.engine.trainer import AverageMeter, MetricMeter, SummaryWriter, TrainerX",
        "from dassl.modeling import BACKBONE_REGISTRY, Backbone, HEAD_REGISTRY, NETWORK_REGISTRY",
        "from dassl.modeling import build_backbone, build_head, build_network",
        "from dassl.modeling.backbone import Backbone, build_backbone",
        "from dassl.modeling.head import HEAD_REGISTRY, build_head",
        "from dassl.modeling.network import build_network",
        "import dassl.modeling.backbone; assert dassl.modeling.build_backbone",
        "from dassl.utils.tools import check_availability, mkdir_if_missing, read_json",
        "from dassl.utils.torchtools import load_checkpoint, set_bn_to_eval",
        "from dassl.data.data_manager import DataManager, DatasetWrapper, build_data_loader",
        "from dassl.data.datasets.build import DATASET_REGISTRY",
        "from dassl.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler",
    ],
)
def test_paths_and_names(line):
    exec(line, {})


def test_paths_cost_nothing_until_used_and_others_stay_unknown():
    code = (
        "import sys, dassl\n"
        "assert not {'torch', 'dassl.modeling', 'dassl.compat.modeling'} & set(sys.modules)\n"
        "import dassl.nothing_here"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith("No module named 'dassl.nothing_here'")


def test_a_path_gives_the_same_objects():
    for path, home in MODULES.items():
        there, here = __import__(path, fromlist=["x"]), __import__(home, fromlist=["x"])
        assert all(getattr(there, name) is getattr(here, name) for name in here.__all__)


def test_registries_of_modeling():
    from dassl.modeling import BACKBONE_REGISTRY, Backbone, build_backbone, build_head

    class TinyBackbone(Backbone):
        def __init__(self, width):
            super().__init__()
            self.out_features = width

    BACKBONE_REGISTRY.register(TinyBackbone, force=True)
    assert build_backbone("TinyBackbone", verbose=False, width=3).out_features == 3
    with pytest.raises(UserError, match="unknown backbone 'TinyBackbon' .*TinyBackbone"):
        build_backbone("TinyBackbon")
    with pytest.raises(UserError, match="unknown head 'mlp'"):
        build_head("mlp")


def _optimizer(lr=0.2):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr}])


def _cosine(optimizer, epochs):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epochs))


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_wrapping_schedulers_give_the_rates_of_the_closed_form(kind):
    optim_cfg = get_cfg_default().OPTIM
    optim_cfg.merge_from_list(
        ["LR_SCHEDULER", "cosine", "MAX_EPOCH", 8, "WARMUP_EPOCH", 3, "WARMUP_TYPE", kind]
    )
    first, second = _optimizer(), _optimizer()
    closed = build_lr_scheduler(first, optim_cfg)
    successor = _cosine(second, 8)
    if kind == "constant":
        wrapped = ConstantWarmupScheduler(second, successor, 3, optim_cfg.WARMUP_CONS_LR)
    else:
        wrapped = LinearWarmupScheduler(second, successor, 3, optim_cfg.WARMUP_MIN_LR)
    for _ in range(8):
        assert second.param_groups[0]["lr"] == pytest.approx(first.param_groups[0]["lr"])
        assert wrapped.get_last_lr() == [second.param_groups[0]["lr"]]
        for optimizer, scheduler in ((first, closed), (second, wrapped)):
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("at", [1, 5])
def test_a_wrapping_scheduler_goes_on_from_plain_values(tmp_path, at):
    def make():
        optimizer = _optimizer()
        return optimizer, ConstantWarmupScheduler(optimizer, _cosine(optimizer, 8), 2, 1e-5)

    def rates(optimizer, scheduler, epochs):
        for _ in range(epochs):
            optimizer.step()
            scheduler.step()
            yield optimizer.param_groups[0]["lr"]

    whole = list(rates(*make(), 8))
    optimizer, scheduler = make()
    list(rates(optimizer, scheduler, at))
    state = {"optim": optimizer.state_dict(), "sched": scheduler.state_dict()}
    save_plain(state, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    optimizer, scheduler = make()
    optimizer.load_state_dict(state["optim"])
    scheduler.load_state_dict(state["sched"])
    assert list(rates(optimizer, scheduler, 8 - at)) == pytest.approx(whole[at:])

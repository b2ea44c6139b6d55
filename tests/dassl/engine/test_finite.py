"""Only finite numbers count: no checkpoint, no result of others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from toy_engine import ToyTrainer

from dassl.utils import UserError


def test_divergence_in_the_last_step_of_all(make_cfg, monkeypatch):
    """Its loss was finite: only the parameters show it."""
    step = ToyTrainer.forward_backward

    def spoilt(self, batch):
        losses = step(self, batch)
        if (self.epoch, self.batch_idx) == (2, 3):
            self.model[2].bias.data[0] = math.inf
        return losses

    monkeypatch.setattr(ToyTrainer, "forward_backward", spoilt)
    cfg = make_cfg()
    with pytest.raises(UserError, match="the trained parameters became infinite or NaN"):
        ToyTrainer(cfg).train()
    folder = Path(cfg.OUTPUT_DIR)
    assert not (folder / "result.json").exists() and not list(folder.glob("model/model*"))
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("final_model", ["last_step", "best_val"])
def test_scores_of_an_evaluation(make_cfg, monkeypatch, final_model):
    def scores(self, image):
        return torch.full((len(image), 3), math.nan)

    monkeypatch.setattr(ToyTrainer, "model_inference", scores)
    cfg = make_cfg("TEST.FINAL_MODEL", final_model)
    with pytest.raises(UserError, match="scores are infinite or NaN"):
        ToyTrainer(cfg).train()
    assert not (Path(cfg.OUTPUT_DIR) / "result.json").exists()


@pytest.mark.parametrize("accuracy", [math.nan, math.inf, -1.0, 100.5])
def test_an_accuracy_that_is_none(make_cfg, monkeypatch, accuracy):
    trainer = ToyTrainer(make_cfg())
    with pytest.raises(UserError, match="no percentage"):
        trainer._records.write_result({"accuracy": accuracy})
    assert not (Path(trainer.output_dir) / "result.json").exists()
    with pytest.raises(UserError, match=r"losses\.ce is infinite or NaN"):
        trainer._records.add_epoch({"epoch": 1, "losses": {"ce": math.nan}})

"""Methods that train rows of their classes' own alone: other classes are tested zero-shot."""

import json

import numpy as np
import pytest

import train
import trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

trainers.modules()
NAMES = ["TipAdapter", "TipAdapterF", "TaskRes", "LPpp", "CLAP", "ZSLP"]
SAVED = {"TEST__SAVE_PREDICTIONS": True, "TRAINER__TIP_ADAPTER__LOGIT_SCALE": 0.0}


def logits(folder):
    return np.load(folder / "predictions.npz")["logits"]


@pytest.mark.parametrize("name", NAMES)
def test_new_classes_get_zero_shot_logits(command, tmp_path, capsys, name):
    base, new, zero_shot = (tmp_path / part for part in ("base", "new", "zero_shot"))
    train.main(command(name, output=base, DATASET__SUBSAMPLE_CLASSES="base", **SAVED))
    tested = ("--eval-only", "--model-dir", str(base))
    options = {"DATASET__SUBSAMPLE_CLASSES": "new", **SAVED}
    train.main(command(name, *tested, output=new, **options))
    assert "2 of this run's 2 classes are new to it: tested zero-shot" in capsys.readouterr().out
    train.main(command("ZeroshotCLIP", output=zero_shot, **options))
    np.testing.assert_allclose(logits(new), logits(zero_shot), rtol=0, atol=1e-4)
    assert json.loads((base / "result.json").read_text())["sees"] == []


@pytest.mark.parametrize("name", NAMES)
def test_depts_twin_is_refused_with_the_reason(name):
    with pytest.raises(UserError, match=f"DePT_{name}' can't be had: {name} trains rows"):
        TRAINER_REGISTRY.get(f"DePT_{name}")

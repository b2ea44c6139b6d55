from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from toy_engine import ToyTrainer, draw_images

import dassl
from dassl.engine import TrainerBase, build_trainer, start_log
from dassl.utils import UserError, load_checkpoint, read_json, setup_logger


def run(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


def lines(folder: str) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves_behind(make_cfg):
    cfg = make_cfg("TEST.SAVE_PREDICTIONS", True, "TEST.PER_CLASS_RESULT", True)
    trainer = run(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    assert sorted(os.listdir(folder)) == [
        *(".lock", "config.yaml", "metrics.jsonl", "model"),
        *("outcomes.npz", "predictions.npz", "result.json", "tensorboard"),
    ]
    assert sorted(os.listdir(folder / "model")) == ["checkpoint", "model.pth.tar-3"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["OPTIM"]["LR"] == 0.005

    epochs = lines(folder)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert set(epochs[0]) == {"epoch", "loss", "losses", "lr", "seconds"}
    for epoch in epochs:
        assert epoch["loss"] == pytest.approx(sum(epoch["losses"].values()), rel=1e-6)
        assert set(epoch["losses"]) == {"ce", "size"}
    assert epochs[0]["lr"] == [1e-5, 1e-5] and epochs[1]["lr"] == [0.005, 0.01]
    assert epochs[2]["lr"] == pytest.approx([0.005 * 0.75, 0.01 * 0.75])

    result = read_json(folder / "result.json")
    expected = {
        "trainer": "ToyTrainer",
        "dataset": "ToyImages",
        "seed": 1,
        "shots": -1,
        "classes": "all",
        "num_test": 12,
        "split": "test",
        "epoch": 3,
        "skipped_images": 0,
        "backbone_sha256": "f00",
        "fewshot_hash": "abc",
        "split_hash": None,
    }
    assert {name: result[name] for name in expected} == expected
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result["versions"]["dept"] == dassl.__version__
    assert result["seconds"] >= sum(epoch["seconds"] for epoch in epochs) > 0
    assert 50 < result["peak_memory_mb"] < 2**20  # torch alone takes more; no machine has so much
    assert [entry["classname"] for entry in result["per_class"]] == ["red", "green", "blue"]

    with np.load(folder / "predictions.npz") as kept:
        assert kept["logits"].shape == (12, 3) and kept["logits"].dtype == np.float32
        assert kept["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert kept["classnames"].tolist() == ["red", "green", "blue"]
        assert kept["paths"][5] == "toy/test/green/1.png"
        hits = kept["logits"].argmax(axis=1) == kept["labels"]
    assert result["accuracy"] == pytest.approx(100 * hits.mean())
    assert trainer.test() == result["accuracy"]


def test_decoded_images_are_counted(make_cfg):
    trainer = run(make_cfg())
    decoding = read_json(Path(trainer.output_dir) / "result.json")["decoding"]
    assert decoding["decoded"] == decoding["kept"] > 0


def test_checkpoints_hold_what_resuming_needs(make_cfg):
    trainer = run(make_cfg("TRAIN.CHECKPOINT_FREQ", 2))
    folder = Path(trainer.output_dir) / "model"
    assert sorted(os.listdir(folder)) == ["checkpoint", "model.pth.tar-2", "model.pth.tar-3"]
    checkpoint = load_checkpoint(folder / "model.pth.tar-3")
    assert set(checkpoint) == {
        *("state_dict", "epoch", "optimizer", "scheduler", "val_result", "rng", "class_keys"),
        *("trainer", "identity", "classnames", "template", "transform"),
    }
    assert checkpoint["class_keys"] == ["key-red", "key-green", "key-blue"]
    assert checkpoint["epoch"] == checkpoint["scheduler"]["last_epoch"] == 3


def test_evaluation_of_another_run(make_cfg):
    trained = run(make_cfg("TRAIN.CHECKPOINT_FREQ", 2))
    cfg = make_cfg(output="evaluation")
    other = build_trainer(cfg)
    other.load_model(trained.output_dir, epoch=2)
    other.test()
    kept = [".lock", "config.yaml", "outcomes.npz", "result.json"]
    assert sorted(os.listdir(cfg.OUTPUT_DIR)) == kept
    result = read_json(Path(cfg.OUTPUT_DIR) / "result.json")
    assert result["epoch"] == 2 and result["model_dir"] == trained.output_dir
    other.load_model(trained.output_dir)
    assert other.loaded_epoch == 3
    assert all(
        torch.equal(a, b)
        for a, b in zip(trained.model.parameters(), other.model.parameters(), strict=True)
    )
    other.load_model("")
    with pytest.raises(UserError, match=r"no checkpoint of epoch 1 \(there are: 2, 3\)"):
        other.load_model(trained.output_dir, epoch=1)


def test_checkpoint_that_does_not_fit(make_cfg):
    trained = run(make_cfg("OPTIM.MAX_EPOCH", 1))
    other = build_trainer(make_cfg())
    other.model[3] = torch.nn.Linear(5, 4)
    with pytest.raises(UserError, match="does not fit the model model: .*size mismatch"):
        other.load_model(trained.output_dir)


def test_best_model_is_chosen_on_validation_images(make_cfg, monkeypatch):
    results = iter([50.0, 70.0, 60.0])
    real = ToyTrainer.test

    def test(self, split=None):
        found = real(self, split)
        return next(results) if split == "val" else found

    monkeypatch.setattr(ToyTrainer, "test", test)
    trainer = run(make_cfg("TEST.FINAL_MODEL", "best_val"))
    folder = Path(trainer.output_dir)
    best = load_checkpoint(folder / "model" / "model-best.pth.tar")
    assert best["epoch"] == 2 and best["val_result"] == 70.0
    assert trainer.best_result == 70.0
    result = read_json(folder / "result.json")
    assert result["epoch"] == 2 and result["num_test"] == 12
    assert torch.equal(trainer.model[3].weight, best["state_dict"]["3.weight"])


def test_the_outcome_of_each_image_is_kept(make_cfg):
    folder = Path(run(make_cfg("TEST.SAVE_PREDICTIONS", True)).output_dir)
    with np.load(folder / "predictions.npz") as kept:
        labels, logits = kept["labels"], torch.tensor(kept["logits"])
    with np.load(folder / "outcomes.npz") as kept:
        assert kept["labels"].tolist() == labels.tolist()
        assert kept["predicted"].tolist() == logits.argmax(dim=1).tolist()
        np.testing.assert_allclose(kept["confidence"], logits.softmax(dim=1).amax(dim=1), rtol=1e-6)
    assert (folder / "outcomes.npz").stat().st_size < 1000


def test_the_validation_of_each_epoch_is_recorded(make_cfg):
    trainer = run(make_cfg("TEST.FINAL_MODEL", "best_val"))
    found = [epoch["val"] for epoch in lines(trainer.output_dir)]
    assert len(found) == 3 and all({"accuracy", "macro_f1", "ece"} <= set(val) for val in found)
    assert max(val["accuracy"] for val in found) == trainer.best_result


def test_of_equal_results_the_first_is_best(make_cfg, monkeypatch):
    results = iter([50.0, 70.0, 70.0])
    real = ToyTrainer.test
    monkeypatch.setattr(
        ToyTrainer,
        "test",
        lambda self, split=None: next(results) if split == "val" else real(self, split),
    )
    trainer = run(make_cfg("TEST.FINAL_MODEL", "best_val"))
    best = load_checkpoint(Path(trainer.output_dir) / "model" / "model-best.pth.tar")
    assert best["epoch"] == 2 and best["val_result"] == 70.0


def test_validation_images_on_request(make_cfg):
    trainer = run(make_cfg("TEST.SPLIT", "val", "OPTIM.MAX_EPOCH", 1))
    result = read_json(Path(trainer.output_dir) / "result.json")
    assert result["split"] == "val" and result["num_test"] == 6
    trainer.val_loader = None
    with pytest.raises(UserError, match="no val images"):  # not the test images instead
        trainer.test("val")
    with pytest.raises(UserError, match="TEST.SPLIT is 'train'"):
        trainer.test("train")


def test_best_val_without_validation_images_is_refused(make_cfg):
    trainer = build_trainer(make_cfg("TEST.FINAL_MODEL", "best_val"))
    trainer.val_loader = None
    with pytest.raises(UserError, match="best_val chooses the epoch by validation images"):
        trainer.train()


def test_no_test(make_cfg):
    trainer = run(make_cfg("TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1))
    assert not (Path(trainer.output_dir) / "result.json").exists()


def test_printed_lines_and_log(make_cfg):
    cfg = make_cfg("TRAIN.PRINT_FREQ", 3)
    start_log(cfg)
    run(cfg)
    log = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    steps = [line for line in log.splitlines() if line.startswith("epoch [")]
    assert [line.split(" time ")[0] for line in steps[:3]] == [
        "epoch [1/3] batch [3/4]",
        "epoch [1/3] batch [4/4]",
        "epoch [2/3] batch [3/4]",
    ]
    for word in (" data ", " loss ", " loss_ce ", " acc ", " lr 1.0000e-05 ", " eta 0:00:0"):
        assert word in steps[0]
    assert "* accuracy: " in log and "it/s" not in log
    start_log(cfg)  # the run is complete: the next one is a fresh one
    assert (Path(cfg.OUTPUT_DIR) / "log.txt").read_text() == ""


def test_fresh_run_clears_what_another_left(make_cfg):
    first = make_cfg("TRAIN.CHECKPOINT_FREQ", 1, "TEST.SAVE_PREDICTIONS", True)
    run(first)
    folder = Path(first.OUTPUT_DIR)
    (folder / "notes.txt").touch()
    (folder / ".config.yaml.partial-00").touch()
    run(make_cfg("OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True))
    assert sorted(os.listdir(folder / "model")) == ["checkpoint", "model.pth.tar-1"]
    assert sorted(os.listdir(folder)) == [
        *(".lock", "config.yaml", "metrics.jsonl", "model", "notes.txt", "tensorboard"),
    ]
    assert len(os.listdir(folder / "tensorboard")) == 1 and len(lines(folder)) == 1


def test_start_weights_in_the_own_folder_stay(make_cfg):
    first = run(make_cfg("OPTIM.MAX_EPOCH", 2))
    start = Path(first.output_dir) / "model" / "model.pth.tar-2"
    run(make_cfg("OPTIM.MAX_EPOCH", 1, "MODEL.INIT_WEIGHTS", str(start)))
    assert start.is_file()


def test_pairs_of_labeled_and_unlabeled_batches(make_cfg):
    for counted, number in (("train_x", 4), ("train_u", 3), ("smaller_one", 3)):
        cfg = make_cfg(
            *("TRAINER.NAME", "ToyPairTrainer", "TRAIN.COUNT_ITER", counted),
            *("OPTIM.MAX_EPOCH", 2),
        )
        trainer = run(cfg)
        assert trainer.num_batches == number == trainer.batch_idx + 1
        assert trainer.sched.last_epoch == 2
    with pytest.raises(UserError, match="TRAIN.COUNT_ITER is 'both'"):
        run(make_cfg("TRAINER.NAME", "ToyPairTrainer", "TRAIN.COUNT_ITER", "both"))


def test_skipped_images_shorten_the_epoch_and_are_counted(make_cfg, tmp_path):
    draw_images(tmp_path)
    for name in ("train/red/0", "train/blue/5", "test/green/1"):
        (tmp_path / "toy" / f"{name}.png").write_bytes(b"no image")
    trainer = run(
        make_cfg(
            *("DATASET.ROOT", str(tmp_path), "INPUT.ON_DECODE_ERROR", "skip"),
            *("DATALOADER.TRAIN_X.BATCH_SIZE", 1, "TEST.SAVE_PREDICTIONS", True),
        )
    )
    assert trainer.sched.last_epoch == 3  # the last batch is known as such
    result = read_json(Path(trainer.output_dir) / "result.json")
    assert result["skipped_images"] == 3 and result["num_test"] == 11
    with np.load(Path(trainer.output_dir) / "predictions.npz") as kept:
        assert len(kept["paths"]) == len(kept["logits"]) == 11


def test_divergence_ends_in_one_line(make_cfg):
    with pytest.raises(UserError, match="the loss became infinite or NaN: try a lower OPTIM.LR"):
        run(make_cfg("OPTIM.LR", 1e30, "OPTIM.WARMUP_EPOCH", -1))


def test_divergence_is_seen_without_looking_at_each_step(make_cfg, monkeypatch):
    def step(self, batch):
        return {"loss": torch.tensor(math.nan if self.epoch == 1 else 1.0)}

    monkeypatch.setattr(ToyTrainer, "forward_backward", step)
    cfg = make_cfg()
    with pytest.raises(UserError, match=r"NaN.*\(epoch 2\)"):
        run(cfg)
    assert len(lines(cfg.OUTPUT_DIR)) == 1


def test_names_of_models():
    trainer = TrainerBase()
    layer = torch.nn.Linear(1, 1)
    trainer.register_model("a", layer, None, None)
    trainer.register_model("b", layer)
    assert trainer.get_model_names() == ["a", "b"] and trainer.get_model_names("b") == ["b"]
    with pytest.raises(ValueError, match="registered already"):
        trainer.register_model("a", layer)
    with pytest.raises(KeyError, match="no model called 'c'"):
        trainer.get_model_names(["c"])
    trainer.set_model_mode("eval")
    assert not layer.training
    with pytest.raises(KeyError, match="mode"):
        trainer.set_model_mode("off")


def test_a_trainer_as_written_for_dassl(make_cfg):
    """Names and calls that files written for Dassl use, `.item()` at each step included."""

    class Foreign(ToyTrainer):
        def check_cfg(self, cfg):
            assert cfg.OPTIM.NAME in ["sgd", "adam"]

        def parse_batch_train(self, batch):
            return batch["img"].to(self.device), batch["label"].to(self.device)

        def forward_backward(self, batch):
            image, label = self.parse_batch_train(batch)
            output = self.model(image)
            loss = torch.nn.functional.cross_entropy(output, label)
            self.optim.zero_grad()
            loss.backward()
            self.optim.step()
            if (self.batch_idx + 1) == self.num_batches:
                self.update_lr()
            return {"loss": loss.item(), "acc": 50.0}

        def load_model(self, directory, epoch=None):
            for name in self.get_model_names():
                model_file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
                checkpoint = load_checkpoint(os.path.join(directory, name, model_file))
                self._models[name].load_state_dict(checkpoint["state_dict"], strict=False)

    trainer = Foreign(make_cfg())
    trainer.train()
    assert lines(trainer.output_dir)[0]["losses"] == {}
    other = Foreign(make_cfg(output="other"))
    other.load_model(trainer.output_dir, epoch=3)
    assert other.test() == trainer.test()


def test_unknown_choices(make_cfg):
    with pytest.raises(UserError, match="FINAL_MODEL is 'best'"):
        build_trainer(make_cfg("TEST.FINAL_MODEL", "best"))
    with pytest.raises(UserError, match=r"unknown trainer 'ToyTrainr' \(did you mean 'ToyTrainer'"):
        build_trainer(make_cfg("TRAINER.NAME", "ToyTrainr"))


@pytest.mark.parametrize("terminal", [False, True])
def test_bar_on_a_terminal_only(make_cfg, monkeypatch, capsys, terminal):
    """On a terminal there is a bar, and none of it in the log."""
    cfg = make_cfg("OPTIM.MAX_EPOCH", 1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    start_log(cfg)
    run(cfg)
    setup_logger(None)
    assert ("epoch 1/1:" in capsys.readouterr().err) == terminal
    log = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    assert "epoch 1/1:" not in log and "epoch [1/1]" in log

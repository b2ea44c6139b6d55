"""scripts/analyze.py on small trained runs."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
import torch

from experiments import analysis_command as analyze
from experiments.features import batches, channel_importance, load_run, window_sums


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["analyze.py", *map(str, arguments)])
    analyze.main()


@pytest.mark.parametrize("window", [1, 5, 32])
def test_channel_importance_is_the_papers_formula(run_folders, window):
    trainer = load_run(run_folders["CoOp"], classes="new")
    found = channel_importance(trainer, window)
    seen = list(batches(trainer))
    f, text = torch.cat([b.image for b in seen]).double(), seen[0].text.double()
    labels = torch.cat([b.labels for b in seen])
    for start in (0, 7, 31):
        channels = [(start + k) % f.shape[1] for k in range(window)]
        s = (f[:, channels] @ text[:, channels].T).clamp(min=0)
        own = s[range(len(s)), labels]
        expected = (own / (s.mean(dim=1) + 1e-12)).mean()
        assert found[start] == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)


def test_windows_wrap():
    x = torch.arange(5.0).reshape(1, 5)
    assert window_sums(x, 2).tolist() == [[1, 3, 5, 7, 4]]
    assert window_sums(x, 5).tolist() == [[10] * 5]


def test_channel_importance_of_oracle_and_both_methods(run_folders, monkeypatch, tmp_path, capsys):
    names = ["oracle", "CoOp", "DePT_CoOp"]
    options = ("--window", 8, "--out", tmp_path)
    run(monkeypatch, "channel-importance", *(run_folders[name] for name in names), *options)
    told = capsys.readouterr().out
    assert "CoOp (oracle), seed 1" in told and "DePT_CoOp, seed 1" in told
    rows = list(csv.DictReader((tmp_path / "channel_importance.csv").open()))
    assert [int(row["channel"]) for row in rows] == [*range(32)] * 3
    for row in rows:
        assert float(row["ratio"]) == pytest.approx(
            float(row["base"]) / max(float(row["new"]), 1e-12)
        )
    for name in dict.fromkeys(row["run"] for row in rows):
        mean = sum(float(row["base"]) for row in rows if row["run"] == name) / 32
        (line,) = (line for line in told.splitlines() if line.startswith(f"{name} "))
        assert f" {mean:.3f} " in line
    for name in ("channels_sorted", "channels_ratio"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_nearest_words_of_a_known_context(run_folders, monkeypatch, tmp_path, capsys, backbone):
    from clip import tokenize
    from clip.clip import load_model

    (checkpoint,) = run_folders["CoOp"].glob("*/model.pth.tar-2")
    content = torch.load(checkpoint, weights_only=True)
    words = ["photo", "of", "a"]
    tokens = tokenize(" ".join(words))[0, 1 : 1 + len(words)]
    (name,) = (n for n in content["state_dict"] if n.rpartition(".")[2] == "ctx")
    content["state_dict"][name] = (
        load_model(str(backbone))[0].token_embedding.weight[tokens].float()
    )
    copy = tmp_path / "run" / checkpoint.parent.name
    copy.mkdir(parents=True)
    torch.save(content, copy / checkpoint.name)
    (tmp_path / "run" / "config.yaml").write_text((run_folders["CoOp"] / "config.yaml").read_text())
    run(monkeypatch, "nearest-words", tmp_path / "run", "--top", 2, "--out", tmp_path)
    rows = list(csv.DictReader((tmp_path / "nearest_words.csv").open()))
    assert [row["word"] for row in rows if row["rank"] == "1"] == words
    assert f"{name}[0]: photo 0.00" in capsys.readouterr().out


def test_confusion_counts_every_image(run_folders, monkeypatch, tmp_path, capsys):
    run(monkeypatch, "confusion", run_folders["DePT_CoOp"], "--classes", "new", "--out", tmp_path)
    head, *rows = csv.reader((tmp_path / "confusion.csv").open())
    counts = np.array([row[1:] for row in rows], int)
    trainer = load_run(run_folders["DePT_CoOp"], classes="new")
    assert head[1:] == trainer.data.classnames and counts.sum() == len(trainer.data.dataset.test)
    accuracy = 100 * counts.diagonal().sum() / counts.sum()
    assert f"accuracy {accuracy:.2f} %" in capsys.readouterr().out


def test_embedding_has_a_point_per_image_and_class(run_folders, monkeypatch, tmp_path):
    run(monkeypatch, "embedding", run_folders["CoOp"], "--max-images", 6, "--out", tmp_path)
    kinds = [row["kind"] for row in csv.DictReader((tmp_path / "embedding.csv").open())]
    assert kinds == ["image"] * 6 + ["text"] * 3
    assert (tmp_path / "embedding.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments", [["nearest-words", "nowhere"], ["confusion", "{run}", "--classes", "old"], ["map"]]
)
def test_a_mistake_is_one_line(run_folders, monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *(argument.format(run=run_folders["CoOp"]) for argument in arguments))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.count("\n") == 1

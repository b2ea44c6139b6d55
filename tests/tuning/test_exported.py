"""A trained model as a folder that stands alone."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train
from dassl.utils import UserError
from experiments import export_command
from tuning import onnx
from tuning.exported import ExportedModel
from tuning.run import open_run


def images(run, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, *run.cfg.INPUT.SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["DePT_CoOp", "CoOp"])
def test_a_folder_gives_the_runs_logits(name, run_folders, tmp_path, capsys):
    folder = tmp_path / "model"
    export_command.main([str(run_folders[name]), "--output", str(folder)])
    run, model = open_run(run_folders[name]), ExportedModel.from_pretrained(folder)
    x = images(run)
    assert torch.equal(model.run.logits(x), run.logits(x))
    assert model.classes == run.classnames and model.run.template == run.template
    text = "".join(p.read_text() for p in folder.iterdir() if p.suffix in (".md", ".yaml", ".json"))
    assert str(tmp_path.parent) not in text  # no path of this machine
    assert f"{len(model.classes)} classes" in capsys.readouterr().out


def test_embeddings_and_head_are_enough(run_folders, tmp_path):
    export_command.main([str(run_folders["CoOp"]), "--output", str(tmp_path / "m")])
    tensors, run = load_file(tmp_path / "m" / "model.safetensors"), open_run(run_folders["CoOp"])
    x = images(run)
    feature = torch.nn.functional.normalize(run.features(x).image.float().cpu(), dim=-1)
    scores = tensors["logit_scale"].exp() * feature @ tensors["class_embeddings"].t()
    assert torch.allclose(scores, run.logits(x), atol=1e-4)


def test_it_works_where_the_backbones_file_is_gone(run_folders, tmp_path, monkeypatch):
    folder, copy = tmp_path / "m", tmp_path / "elsewhere"
    export_command.main([str(run_folders["DePT_CoOp"]), "--output", str(folder)])
    assert (folder / "backbone.safetensors").is_file()  # the fixture's is a file without a name
    ExportedModel(folder).save_pretrained(copy)
    shutil.rmtree(folder)
    monkeypatch.chdir(tmp_path)
    run = open_run(run_folders["DePT_CoOp"])
    x = images(run)
    assert torch.equal(ExportedModel(copy).run.logits(x), run.logits(x))
    with pytest.raises(UserError, match="not empty"):
        ExportedModel(copy).save_pretrained(copy)


def test_features_of_images(run_folders, picture_root, tmp_path):
    words = [str(run_folders["DePT_CoOp"]), "--output", str(tmp_path / "m")]
    export_command.main([*words, "--features", str(picture_root / "ant")])
    found = np.load(tmp_path / "m" / "features.npz")
    n, c = len(found["paths"]), len(found["classnames"])
    assert n > 1 and found["logits"].shape == (n, c) and found["text"].shape[0] == c
    assert np.allclose(np.linalg.norm(found["image"], axis=1), 1, atol=1e-5)


def test_what_isnt_a_model(run_folders, tmp_path):
    with pytest.raises(UserError, match="no model.json"):
        ExportedModel.from_pretrained(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "model.json").write_text(json.dumps({"format": 99}))
    shutil.copy(run_folders["CoOp"] / "config.yaml", tmp_path / "x")
    with pytest.raises(UserError, match="format 99"):
        ExportedModel(tmp_path / "x")
    with pytest.raises(SystemExit):
        export_command.main([str(run_folders["CoOp"]), "--output", str(tmp_path)])


def test_onnx_names_what_is_missing(run_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxscript onnxruntime"):
        onnx.export(open_run(run_folders["CoOp"]), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cant_be_onnx_leaves_the_rest(run_folders, tmp_path, monkeypatch, capsys):
    words = [str(run_folders["CoOp"]), "--output", str(tmp_path / "m"), "--onnx"]

    def refuse(*_):
        raise UserError("CoOp can't be written as ONNX: why")

    monkeypatch.setattr(onnx, "export", refuse)
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        export_command.main(words)
    assert not (tmp_path / "m").exists()  # what is missing is said before anything is written
    monkeypatch.setattr(onnx, "require_packages", lambda: None)
    with pytest.raises(SystemExit):
        export_command.main(words)
    assert f"ONNX: why; all else is in {tmp_path / 'm'}" in capsys.readouterr().err
    assert "model.onnx" not in (tmp_path / "m" / "README.md").read_text()
    assert ExportedModel(tmp_path / "m").classes


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in onnx.NEEDED), reason="no ONNX here"
)
def test_onnx_computes_what_pytorch_does(run_folders, tmp_path):
    run, path = open_run(run_folders["DePT_CoOp"]), tmp_path / "m.onnx"
    assert onnx.export(run, path) < 1e-4
    import onnxruntime

    x = images(run, 5)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": x.numpy()})
    assert np.allclose(found, run.logits(x).numpy(), atol=1e-3)


@pytest.mark.parametrize("name", ["MaPLe", "IPT", "DPC_CoOp", "DePT_DPC_CoOp"])
def test_a_graph_is_for_any_number_of_images(name, command, tmp_path):
    """What ONNX is written from: prompts shared by all images, and each image's own."""
    train.main(command(name, OPTIM__MAX_EPOCH=1))
    run = open_run(tmp_path / "run")
    model = onnx.Classifier(onnx._plain(run).eval()).eval()
    dynamic = {"image": {0: torch.export.Dim("batch", min=2)}}
    graph = torch.export.export(model, (images(run, 2),), dynamic_shapes=dynamic).module()
    for n in (2, 5):
        torch.testing.assert_close(
            graph(images(run, n)), run.logits(images(run, n)), atol=1e-3, rtol=0
        )

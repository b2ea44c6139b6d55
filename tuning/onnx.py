"""A model as one ONNX graph, checked against PyTorch.

Shape letters: method.py's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dassl.utils import UserError

from .method import Method
from .run import Run

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of logits, relative to the largest


class Classifier(nn.Module):
    """Preprocessed images (B,3,I,I) → logits (B,C) of a method, its text features constants."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method = method.settled()
        with torch.no_grad():
            for part in method.modules():
                if isinstance(part, Method):  # DePT's holds another
                    part.text_features = _constant(part)  # type: ignore[method-assign]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → (B,C)."""
        return self.method.logits(self.method.features(image))


def _constant(method: Method) -> Any:
    """`method.text_features`, computed now where they don't depend on the image."""
    try:
        text = method.encode_text()
    except NotImplementedError:
        return method.text_features
    return lambda: text


def require_packages() -> None:
    """Raise UserError naming the packages that aren't here."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX takes packages that aren't here: pip install {' '.join(missing)}")


def export(run: Run, path: Path) -> float:
    """Write a run's model as ONNX to `path`; return the largest relative difference of logits.

    In fp32, for any number of images. What onnxruntime computes is compared with PyTorch.

    Raises:
        UserError: a package is missing, the method can't be written as ONNX, or numbers differ.
    """
    require_packages()
    import onnxruntime

    model = Classifier(_plain(run).eval()).eval()
    torch.manual_seed(0)
    images = torch.randn(3, 3, *run.cfg.INPUT.SIZE)
    partial = path.with_name(f".{path.name}.part")
    try:
        _write(model, images[:2], partial)
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        if isinstance(session.get_inputs()[0].shape[0], int):
            name = run.cfg.TRAINER.NAME
            raise UserError(f"{name} can't be written as ONNX for any number of images")
        (found,) = session.run(None, {"images": images.numpy()})
    except UserError:
        partial.unlink(missing_ok=True)
        raise
    except Exception as error:  # the exporter raises nearly anything
        partial.unlink(missing_ok=True)
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{run.cfg.TRAINER.NAME} can't be written as ONNX: {why}") from None
    with torch.no_grad():
        wanted = model(images)
    difference = (torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max()
    if not difference <= TOLERANCE:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"onnxruntime's logits differ from PyTorch's by {difference:.1e} of the largest: "
            "nothing was written"
        )
    os.replace(partial, path)
    return float(difference)


def _plain(run: Run) -> Method:
    """The method on the plain encoders, in fp32 on the CPU."""
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.FAST, cfg.USE_CUDA = False, False
    method = dataclasses.replace(run, cfg=cfg, _methods={}).method()
    method.requires_grad_(False)
    return method


def _write(model: nn.Module, images: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )

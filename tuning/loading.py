"""The frozen towers, the precision they run in, and checkpoints put into a method.

Shape letters: method.py's.
"""

from __future__ import annotations

import math
from weakref import WeakValueDictionary

import torch

from clip.architecture import Architecture
from clip.clip import find_backbone
from clip.model import convert_weights
from clip.prompting import Encoders
from dassl.config import CfgNode
from dassl.utils import UserError

from . import original_checkpoints
from .method import Method

PRECISIONS = ("fp32", "fp16", "bf16", "amp")

_ENCODERS: WeakValueDictionary[tuple, Encoders] = WeakValueDictionary()


def take_precision(cfg: CfgNode, node: CfgNode) -> None:
    """Put TRAINER.PREC, the precision of whatever method runs, into the method's own node."""
    if cfg.TRAINER.PREC:
        node.PREC, cfg.TRAINER.PREC = cfg.TRAINER.PREC, ""


def resolve_precision(wanted: str, device: torch.device, key: str) -> str:
    """The precision to run in: half precision of the towers needs a GPU, except bf16.

    Raises:
        UserError: an unknown one.
    """
    if wanted not in PRECISIONS:
        raise UserError(f"{key} is {wanted!r}; one of: {', '.join(PRECISIONS)}")
    if wanted in ("fp16", "amp") and device.type == "cpu":
        faster = f" ({key} bf16 runs here, large towers faster)" if cpu_has_bf16() else ""
        print(f"{key}: {wanted} needs a GPU; running in fp32 on this CPU{faster}")
        return "fp32"
    return wanted


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16, as far as PyTorch tells: AVX-512 or AMX."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision where `precision` is "amp", else none."""
    return torch.autocast(device.type, dtype=torch.float16, enabled=precision == "amp")


def load_encoders(cfg: CfgNode, precision: str, device: torch.device) -> tuple[Encoders, str]:
    """The frozen towers, shared by all that are alive at a time, and their digest.

    Raises:
        UserError: no such backbone, or INPUT.SIZE isn't its images'.
    """
    backbone = find_backbone(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.ARCHITECTURE)
    key = (backbone.digest, precision, str(device), cfg.MODEL.FAST)
    encoders = _ENCODERS.get(key)
    if encoders is None:
        clip_model = backbone.build()
        if precision != "fp16":
            clip_model.float()
        if precision in ("fp16", "bf16"):
            half = torch.float16 if precision == "fp16" else torch.bfloat16
            convert_weights(clip_model, half)
        encoders = _ENCODERS[key] = Encoders(clip_model.to(device), cfg.MODEL.FAST)
    if encoders.note:  # told by every run, whichever loaded it
        print(encoders.note)
    _check_images(cfg, encoders.image.visual.input_resolution, backbone.architecture)
    return encoders, backbone.digest


def _greet(checkpoint: dict, method: Method, source: str) -> None:
    """Say whose checkpoint of the original code it is. Raises as `Method.check_source`."""
    kind = original_checkpoints.kind(checkpoint["state_dict"])
    print(f"{source}: a checkpoint of the original code ({kind})")
    if isinstance(settings := checkpoint.get("settings"), dict):
        method.check_source(settings)


def loaded_encoders() -> list[Encoders]:
    """The towers that are alive, for whoever wants them to stay."""
    return list(_ENCODERS.values())


def load_into(
    method: Method,
    checkpoint: dict,
    source: str,
    backbone_sha256: str,
    partial: bool = False,
    others_classes: bool = False,
) -> None:
    """Put a checkpoint's values into a method, strictly; say what was taken and what left.

    Args:
        method: what they are put into.
        checkpoint: with a state_dict; ours, or one of the original code.
        source: its name, for messages.
        backbone_sha256: of the method's encoders.
        partial: a start for training: what is missing stays at its initial values.
        others_classes: a checkpoint that doesn't tell its classes has others than the method.

    Raises:
        UserError: it is of another method, backbone or shape.
    """
    state, keys = checkpoint["state_dict"], checkpoint.get("class_keys")
    backbone = checkpoint.get("backbone_sha256")
    if backbone not in (None, backbone_sha256):
        raise UserError(
            f"{source} was trained on another backbone (SHA-256 {backbone[:12]}…, this run has "
            f"{backbone_sha256[:12]}…): set MODEL.BACKBONE.NAME as in training"
        )
    left: list[str] = []
    original = original_checkpoints.is_original(state)
    if original:
        _greet(checkpoint, method, source)
        keys = original_checkpoints.class_keys(state, method)
        state, left = original_checkpoints.translate(state, method.names())
        state = state if partial else method.from_original(state)
    if keys is None and others_classes:
        keys = []
    if partial:
        state = method.as_start(state)
    taken = method.load_trained(state, keys, partial)
    if not partial and not original:  # a start prepares by this run's images
        method.load_prepared(checkpoint.get("prepared", {}), keys)
    method.forget_text()
    names = method.names()
    left += [name for name in state if names.get(name) not in taken]
    print(f"Taken from {source}: {', '.join(taken) or 'nothing'}")
    if left:
        print(f"Left there: {', '.join(left)}")
    if partial and (fresh := [name for name in method.trained() if name not in taken]):
        print(f"Not in it, so at their initial values: {', '.join(fresh)}")


def _check_images(cfg: CfgNode, resolution: int, architecture: Architecture) -> None:
    size = cfg.INPUT.SIZE
    if tuple(size) != (resolution, resolution):
        raise UserError(
            f"INPUT.SIZE is {tuple(size)}, but backbone {cfg.MODEL.BACKBONE.NAME} takes "
            f"{resolution} x {resolution} images: set INPUT.SIZE to ({resolution}, {resolution})"
        )
    given = (*cfg.INPUT.PIXEL_MEAN, *cfg.INPUT.PIXEL_STD)
    wanted = (*architecture.mean, *architecture.std)
    if architecture.half:  # OpenAI's: what a run's config says is its own affair
        return
    if not all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(given, wanted, strict=True)):
        raise UserError(
            f"backbone {cfg.MODEL.BACKBONE.NAME} was trained on images of other scales: set "
            f"INPUT.PIXEL_MEAN to {list(architecture.mean)} and INPUT.PIXEL_STD to "
            f"{list(architecture.std)}"
        )

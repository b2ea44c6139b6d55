"""What trainer files written elsewhere take from one another, and nothing here uses. Skip it."""

from __future__ import annotations

from dassl.config import CfgNode

from .clip import load_model
from .model import CLIP


def load_clip_to_cpu(cfg: CfgNode) -> CLIP:
    """The CLIP of MODEL.BACKBONE.NAME, its matrices in fp16, under the name that CoOp gave it."""
    return load_model(cfg.MODEL.BACKBONE.NAME)[0]

"""The registered evaluators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dassl.config import CfgNode
from dassl.utils import Registry

if TYPE_CHECKING:
    from .evaluator import EvaluatorBase

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> EvaluatorBase:
    """Return the evaluator `cfg.TEST.EVALUATOR`."""
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return evaluator(cfg, **kwargs)

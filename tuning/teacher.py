"""A second, frozen model that a method learns from: any trained run of this code."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dassl.config import CfgNode
from dassl.utils import UserError, file_sha256

from .feature_cache import sources_digest
from .loading import autocast
from .method import Classes, Method
from .run import Run, open_run

# What of the images must be as the teacher had them.
_INPUT = ("SIZE", "PIXEL_MEAN", "PIXEL_STD")


class Teacher:
    """The run that a config key names, read when it is first asked for.

    It is no module: its parameters are neither trained, nor saved, nor stacked with several runs'.

    Args:
        cfg: of the run that learns.
        key: the config key that names the teacher's run, a folder or a checkpoint file.
        classes: to choose from.
    """

    def __init__(self, cfg: CfgNode, key: str, classes: Classes) -> None:
        self.cfg = cfg
        self.key = key
        self.classes = replace(classes, others={})

    @cached_property
    def run(self) -> Run:
        """The teacher's run.

        Raises:
            UserError: none is named, there is none, or it takes other images.
        """
        run = open_run(path_of(self.cfg, self.key))
        for name in _INPUT:
            own, its = list(self.cfg.INPUT[name]), list(run.cfg.INPUT[name])
            if own != its:
                raise UserError(
                    f"{self.key}: the teacher takes images of INPUT.{name} {its}, this run has "
                    f"{own}: they must be the same"
                )
        return run

    @cached_property
    def method(self) -> Method:
        """Its method, frozen, for the run's classes."""
        return self.run.method(self.classes)

    @cached_property
    def precision(self) -> str:
        """What its towers run in."""
        with contextlib.redirect_stdout(io.StringIO()):  # what a training run would tell
            device = self.method.encoders.logit_scale.device
            return self.run.trainer_class.precision_of(self.run.cfg, device)

    @property
    def is_read(self) -> bool:
        """Whether it was asked for anything: a test of a trained method doesn't."""
        return "run" in vars(self)

    @property
    def sees(self) -> list[str]:
        """What it has seen, by its own result; a run without one doesn't say."""
        return list(self.run.result.get("sees", []))

    @torch.no_grad()
    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → its logits (B,C), at least fp32."""
        method = self.method
        device = method.encoders.logit_scale.device
        with autocast(device, self.precision):
            features = method.features(image.to(device))
        logits = method.logits(features)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def source(self) -> dict[str, Any]:
        """What its logits depend on beside the images, as plain values."""
        return {
            "teacher": digest_of(self.run),
            "backbone": self.run.result.get("backbone_sha256") or self.run.backbone_name(),
            "precision": self.precision,
            "method's code": sources_digest(
                Path(__file__).parent, Path(inspect.getfile(self.run.trainer_class)).parent
            ),
            "classes": [self.classes.keys, self.classes.names, self.classes.template],
        }


def path_of(cfg: CfgNode, key: str) -> str:
    """What `key` names. Raises UserError if it is empty."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    if not value:
        raise UserError(f"{key} is empty: set it to the run to learn from, a folder of train.py")
    return value


def digest_of(run: Run) -> str:
    """SHA-256 of a run's checkpoint; of its identity where it trained nothing."""
    if run.checkpoint_path is not None:
        return file_sha256(run.checkpoint_path)
    return hashlib.sha256(json.dumps(run.identity, sort_keys=True).encode()).hexdigest()

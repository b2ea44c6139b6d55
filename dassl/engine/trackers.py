"""Experiment trackers beside TensorBoard: Weights & Biases and MLflow, when asked for.

`TRAIN.TRACKERS "('wandb',)"`. They get the scalars that TensorBoard gets; where they are kept is
theirs to configure (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, …).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from dassl.config import CfgNode
from dassl.utils import UserError, suggest


class Tracker:
    """What stands in for a SummaryWriter: `add_scalar` and `close`."""

    def __init__(self, module: ModuleType, cfg: CfgNode) -> None:
        self.module = module
        folder = Path(cfg.OUTPUT_DIR)
        self.start(folder, "/".join(folder.parts[-5:]), yaml.safe_load(cfg.dump()))

    def start(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        """Open a run called `name` with the whole config."""
        raise NotImplementedError

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Take in one value."""
        raise NotImplementedError

    def close(self) -> None:
        """End the run."""
        raise NotImplementedError


class WandbTracker(Tracker):
    """Weights & Biases."""

    def start(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        """Open it by `wandb.init`."""
        self.run = self.module.init(dir=str(folder), name=name, config=config)
        # Training counts batches, evaluation epochs: wandb's own step would have to grow always.
        self.run.define_metric("*", step_metric="step")

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Log one value with its step."""
        self.run.log({tag: float(value), "step": step})

    def close(self) -> None:
        """Have it send what is left."""
        self.run.finish()


class MLflowTracker(Tracker):
    """MLflow."""

    def start(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        """Open it; the config is its artifact config.yaml."""
        self.module.start_run(run_name=name)
        self.module.log_dict(config, "config.yaml")
        self.module.set_tag("output_dir", str(folder))

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Log one value as a metric."""
        self.module.log_metric(tag, float(value), step=step)

    def close(self) -> None:
        """Mark it as finished."""
        self.module.end_run()


TRACKERS = {"wandb": WandbTracker, "mlflow": MLflowTracker}


class Writers:
    """Several writers in the place of one."""

    def __init__(self, writers: Sequence[Any]) -> None:
        self.writers = list(writers)

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Hand one value to each."""
        for writer in self.writers:
            writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """End each."""
        for writer in self.writers:
            writer.close()


def with_trackers(writer: Any, cfg: CfgNode) -> Any:
    """Return `writer`, joined by the trackers that cfg.TRAIN.TRACKERS names.

    Raises UserError for an unknown one, or one that isn't installed.
    """
    names = cfg.TRAIN.TRACKERS
    names = [names] if isinstance(names, str) else list(names)
    trackers = []
    for name in filter(None, names):
        if name not in TRACKERS:
            raise UserError(
                f"TRAIN.TRACKERS: no tracker {name!r}{suggest(name, TRACKERS)}; "
                f"one of: {', '.join(TRACKERS)}"
            )
        try:
            module = importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"TRAIN.TRACKERS names {name}: install it, pip install {name}"
            ) from None
        trackers.append(TRACKERS[name](module, cfg))
    return Writers([writer, *trackers]) if trackers else writer

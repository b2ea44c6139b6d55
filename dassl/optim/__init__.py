"""Optimisers and learning-rate schedules from the OPTIM node."""

from .lr_scheduler import build_lr_scheduler, load_scheduler
from .optimizer import build_optimizer, load_optimizer

__all__ = ["build_lr_scheduler", "build_optimizer", "load_optimizer", "load_scheduler"]

"""Trainers, and what a run leaves in its folder."""

from .base import TrainerBase
from .build import TRAINER_REGISTRY, build_trainer
from .records import Records, start_log
from .trainer import SimpleTrainer, TrainerX, TrainerXU

__all__ = [
    "TRAINER_REGISTRY",
    "Records",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_trainer",
    "start_log",
]

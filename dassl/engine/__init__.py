"""Trainers, and what a run leaves in its folder."""

from dassl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "build": ["TRAINER_REGISTRY", "build_trainer"],
        "records": ["Records", "start_log"],
        "base": ["TrainerBase"],
        "trainer": ["SimpleTrainer", "TrainerX", "TrainerXU"],
    },
)

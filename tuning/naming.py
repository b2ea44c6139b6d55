"""How trainers are called: DePT around the trainer X is `DePT_X`, DPC around it `DPC_X`.

Here rather than in trainers/dept.py, as tables and plots of results ask too, without PyTorch.
"""

from __future__ import annotations

_WRAPPED = "DePT_"
_PARALLEL = "DPC_"

# Where in a run's folder its first stage lies, a run of another trainer.
STAGE_ONE = "stage1"


def parallel_name(trainer: str) -> str:
    """The name of DPC around a trainer."""
    return _PARALLEL + trainer


def wrapped_name(trainer: str) -> str:
    """The name of DePT around a trainer, by the trainer's own or DePT's around it."""
    return _WRAPPED + bare_name(trainer)


def bare_name(trainer: str) -> str:
    """The name of the trainer that DePT is around; a trainer's own name if it isn't DePT's."""
    return trainer.removeprefix(_WRAPPED)


def is_wrapped(trainer: str) -> bool:
    """Whether a name is that of DePT around a trainer."""
    return trainer != bare_name(trainer)

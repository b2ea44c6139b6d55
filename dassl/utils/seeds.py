"""Random number generators: seeding, and their states as plain values."""

from __future__ import annotations

import functools
import random
import secrets
from typing import Any

from .errors import UserError


def set_random_seed(seed: int) -> None:
    """Seed python, numpy and torch (all devices). Raises UserError for a seed numpy won't take."""
    import numpy as np
    import torch

    if not 0 <= seed < 2**32:
        raise UserError(f"the seed is {seed}; it must be from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def resolve_seed(seed: int) -> int:
    """Return `seed` itself, or for a negative one a seed drawn once per process."""
    return seed if seed >= 0 else _any_seed()


@functools.cache
def _any_seed() -> int:
    return secrets.randbits(32)


def forget_any_seed() -> None:
    """Have the next negative seed drawn anew, as in a process of its own."""
    _any_seed.cache_clear()


def get_rng_state() -> dict[str, Any]:
    """Return the states of all generators as tensors and plain values."""
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype("int64")), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `get_rng_state` returned; device states only on as many devices."""
    import numpy as np
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])

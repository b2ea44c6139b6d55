"""What the values of the config's keys must be: one table, used when a config is complete.

A method declares those of its own keys beside its defaults, in `extend_cfg`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dassl.utils import UserError

from .identity import config_values
from .node import CfgNode


@dataclass(frozen=True)
class Check:
    """says: what a value must be, after "must be". holds: whether it is."""

    says: str
    holds: Callable[[Any], bool]


def whole(least: int | None = None, most: int | None = None) -> Check:
    """A whole number in a range."""
    return Check(
        f"a whole number{_range(least, most)}",
        lambda x: type(x) is int and _within(x, least, most),
    )


def real(
    least: float | None = None, most: float | None = None, above: float | None = None
) -> Check:
    """A finite number in a range; `above` excludes its lower end."""
    says = f"a finite number above {above:g}" if above is not None else "a finite number"
    return Check(
        says + _range(least, most),
        lambda x: (
            type(x) in (int, float)
            and math.isfinite(x)
            and _within(x, least, most)
            and (above is None or x > above)
        ),
    )


def several(each: Check, length: int | None = None) -> Check:
    """A list or tuple, of a length if that is given."""
    number = "a list" if length is None else f"{length} values"
    return Check(
        f"{number}, each {each.says}",
        lambda x: (
            isinstance(x, (list, tuple))
            and (length is None or len(x) == length)
            and all(map(each.holds, x))
        ),
    )


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return f" from {least}" if least is not None else f" up to {most}" if most is not None else ""


def _within(x: float, least: float | None, most: float | None) -> bool:
    return (least is None or x >= least) and (most is None or x <= most)


name = Check("a name", lambda x: isinstance(x, str))
share = real(0, 1)
rate = real(0)
below_one = Check("a number from 0 and below 1", lambda x: real(0, 1).holds(x) and x < 1)

CHECKS: dict[str, Check] = {
    "SEED": whole(most=2**32 - 1),
    "INPUT.SIZE": several(whole(1, 10_000), 2),
    "INPUT.TRANSFORMS": several(name),
    "INPUT.PIXEL_MEAN": several(real(), 3),
    "INPUT.PIXEL_STD": several(real(above=0), 3),
    "INPUT.CROP_PADDING": whole(0),
    "INPUT.RRCROP_SCALE": Check(
        "two shares of the area, above 0 and up to 1, the smaller first",
        lambda x: several(share, 2).holds(x) and 0 < x[0] <= x[1],
    ),
    "INPUT.CUTOUT_N": whole(0),
    "INPUT.CUTOUT_LEN": whole(1),
    "INPUT.GN_MEAN": real(),
    "INPUT.GN_STD": rate,
    "INPUT.RANDAUGMENT_N": whole(0),
    "INPUT.RANDAUGMENT_M": whole(0, 30),
    "INPUT.COLORJITTER_B": rate,
    "INPUT.COLORJITTER_C": rate,
    "INPUT.COLORJITTER_S": rate,
    "INPUT.COLORJITTER_H": real(0, 0.5),
    "INPUT.RGS_P": share,
    "INPUT.GB_P": share,
    "INPUT.GB_K": Check("an odd number from 1", lambda x: whole(1).holds(x) and x % 2 == 1),
    "DATASET.NUM_SHOTS": whole(-1),
    "DATASET.SOURCE_DOMAINS": several(name),
    "DATASET.TARGET_DOMAINS": several(name),
    "DATASET.NUM_LABELED": whole(-1),
    "DATASET.VAL_PERCENT": below_one,
    "DATASET.STL10_FOLD": whole(-1),
    "DATASET.CIFAR_C_LEVEL": whole(1, 5),
    "DATALOADER.NUM_WORKERS": whole(0),
    "DATALOADER.K_TRANSFORMS": whole(1),
    "DATALOADER.DECODED_GB": rate,
    "DATALOADER.FEATURE_CACHE_GB": rate,
    "DATALOADER.TRAIN_X.BATCH_SIZE": whole(1),
    "DATALOADER.TRAIN_X.N_DOMAIN": whole(0),
    "DATALOADER.TRAIN_X.N_INS": whole(1),
    "DATALOADER.TRAIN_U.BATCH_SIZE": whole(1),
    "DATALOADER.TRAIN_U.N_DOMAIN": whole(0),
    "DATALOADER.TRAIN_U.N_INS": whole(1),
    "DATALOADER.TEST.BATCH_SIZE": whole(1),
    "MODEL.HEAD.HIDDEN_LAYERS": several(whole(1)),
    "MODEL.HEAD.DROPOUT": share,
    "OPTIM.LR": rate,
    "OPTIM.WEIGHT_DECAY": rate,
    "OPTIM.MOMENTUM": below_one,
    "OPTIM.SGD_DAMPNING": share,
    "OPTIM.RMSPROP_ALPHA": below_one,
    "OPTIM.ADAM_BETA1": below_one,
    "OPTIM.ADAM_BETA2": below_one,
    "OPTIM.ADAM_EPS": rate,
    "OPTIM.NEW_LAYERS": several(name),
    "OPTIM.BASE_LR_MULT": rate,
    "OPTIM.STEPSIZE": several(whole()),
    "OPTIM.GAMMA": rate,
    "OPTIM.MAX_EPOCH": whole(1),
    "OPTIM.WARMUP_EPOCH": whole(),
    "OPTIM.WARMUP_CONS_LR": rate,
    "OPTIM.WARMUP_MIN_LR": rate,
    "TRAIN.CHECKPOINT_FREQ": whole(),
    "TRAIN.PRINT_FREQ": whole(),
    "TRAIN.TRACKERS": Check("names", lambda x: name.holds(x) or several(name).holds(x)),
}


def declare_checks(checks: Mapping[str, Check]) -> None:
    """Add checks of further keys, such as {"TRAINER.COOP.N_CTX": whole(1)}."""
    CHECKS.update(checks)


def check_values(cfg: CfgNode) -> None:
    """Raise UserError for the first value that isn't what its key must be, or no number at all."""
    for key, value in config_values(cfg, leave_out=()).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} is {value!r}; it must be a finite number")
    for key, check in CHECKS.items():
        node: Any = cfg
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
        if node is not _ABSENT and not check.holds(node):
            raise UserError(f"{key} is {node!r}; it must be {check.says}")


_ABSENT = object()

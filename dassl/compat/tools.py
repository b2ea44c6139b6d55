"""Dassl's `dassl.utils.tools` and `dassl.utils.torchtools`: names of `dassl.utils`, and two."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dassl.utils import (
    check_choice,
    check_isfile,
    collect_env_info,
    count_num_param,
    init_network_weights,
    listdir_nohidden,
    load_checkpoint,
    load_pretrained_weights,
    mkdir_if_missing,
    open_all_layers,
    open_specified_layers,
    read_image,
    read_json,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
    tolist_if_not,
    write_json,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "count_num_param",
    "init_network_weights",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "open_all_layers",
    "open_specified_layers",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_bn_to_eval",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Raise UserError if `requested` is not one of `available`."""
    check_choice("the name", requested, list(available))


def set_bn_to_eval(module: nn.Module) -> None:
    """For `model.apply`: batch normalization keeps its running statistics while others train."""
    from torch.nn.modules.batchnorm import _BatchNorm

    if isinstance(module, _BatchNorm):
        module.eval()

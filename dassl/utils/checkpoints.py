"""Checkpoints of tensors and plain values: written whole, read without running their code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import UserError
from .files import atomic_copy, atomic_write, write_tensors
from .tensor_files import read_tensors

POINTER = "checkpoint"  # the file that names the newest checkpoint of its folder
BEST = "model-best.pth.tar"


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Return a checkpoint with its tensors on the CPU. Nothing in the file is executed.

    Scheduler objects and numpy scalars in a checkpoint of Dassl's original code are left out.
    Raises UserError if there is no such file, it is damaged, or it holds other objects.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}")
    checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def save_plain(state: dict[str, Any], path: str | os.PathLike) -> None:
    """Write tensors and plain values with `torch.save`, whole or not at all.

    Raises TypeError naming the entry that `weights_only` loading would refuse.
    """
    _check_plain(state, "checkpoint")
    write_tensors(state, path)


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        # Long sequences are RNG states: thousands of numbers of one type.
        for item in value if len(value) < 100 else value[:1]:
            _check_plain(item, where)
    elif type(value) not in (str, int, float, bool, bytes, type(None)) and not isinstance(
        value, torch.Tensor
    ):
        raise TypeError(f"{where} is a {type(value).__name__}, not a tensor or a plain value")


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str | os.PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write `state` to `<save_dir>/model.pth.tar-<epoch>` and note it as the newest there.

    Args:
        state: "state_dict" and "epoch" at least; tensors and plain values only.
        save_dir: folder, made if missing.
        is_best: also copy the file to `model-best.pth.tar`.
        remove_module_from_keys: drop DataParallel's "module." from parameter names.
        model_name: file name instead of `model.pth.tar-<epoch>`.
    """
    save_dir = Path(save_dir)
    if remove_module_from_keys:
        state = {**state, "state_dict": _without_module(state["state_dict"])}
    path = save_dir / (model_name or f"model.pth.tar-{state['epoch']}")
    save_plain(state, path)
    with atomic_write(save_dir / POINTER) as file:
        file.write(f"{path.name}\n")
    print(f"Checkpoint saved to {path}")
    if is_best:
        atomic_copy(path, save_dir / BEST)


def newest_checkpoint(folder: str | os.PathLike) -> Path:
    """Return the checkpoint that was written last into `folder`. Raises UserError if none was."""
    try:
        name = (Path(folder) / POINTER).read_text(encoding="utf-8").strip()
    except OSError:
        raise UserError(f"no checkpoint in {folder}") from None
    return Path(folder) / name


def find_checkpoint(directory: str | os.PathLike, name: str, epoch: int | None = None) -> Path:
    """Return the checkpoint file of model `name` in the run's folder `directory`.

    If there is no folder `name` but a single other one with checkpoints, that is meant: other code
    gives its models other names.

    Raises:
        UserError: if there is none; the message names those there are.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no such model directory: {directory}")
    folder = directory / name
    if not folder.is_dir():
        others = sorted({p.parent for p in directory.glob("*/model*.pth.tar*")})
        if len(others) != 1:
            found = ", ".join(other.name for other in others) or "no model"
            raise UserError(f"{directory} holds no model {name!r} (found: {found})")
        folder = others[0]
    files = [p for p in folder.glob("model.pth.tar-*") if p.name.rpartition("-")[2].isdigit()]
    by_epoch = {int(path.name.rpartition("-")[2]): path for path in files}
    if epoch is not None:
        if epoch not in by_epoch:
            known = ", ".join(map(str, sorted(by_epoch))) or "none"
            raise UserError(f"{folder} has no checkpoint of epoch {epoch} (there are: {known})")
        return by_epoch[epoch]
    best = folder / BEST
    if best.is_file():
        return best
    if not by_epoch:
        raise UserError(f"no checkpoint in {folder}")
    return by_epoch[max(by_epoch)]


def resume_from_checkpoint(
    fdir: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> int:
    """Load the newest checkpoint of folder `fdir` and return the number of epochs done."""
    path = newest_checkpoint(fdir)
    checkpoint = load_checkpoint(path)
    model.load_state_dict(checkpoint["state_dict"])
    for part, name in ((optimizer, "optimizer"), (scheduler, "scheduler")):
        if part is not None and checkpoint.get(name) is not None:
            part.load_state_dict(checkpoint[name])
    print(f"Loaded {path} (epoch {checkpoint['epoch']})")
    return checkpoint["epoch"]


def load_pretrained_weights(model: nn.Module, weight_path: str | os.PathLike) -> None:
    """Copy the parameters whose names and shapes fit from a checkpoint into `model`.

    Says which ones do not fit. Raises UserError if none fits.
    """
    checkpoint = load_checkpoint(weight_path)
    given = _without_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise UserError(
            f"{weight_path} fits no parameter of {type(model).__name__}: it has "
            f"{', '.join(list(given)[:5])}; wanted are {', '.join(list(own)[:5])}"
        )
    model.load_state_dict(own | fitting)
    print(f"Loaded {len(fitting)} of {len(own)} tensors from {weight_path}")
    if unused := [name for name in given if name not in fitting]:
        print(f"Not used, since name or shape differ: {', '.join(unused)}")


def _without_module(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("module."): value for name, value in state_dict.items()}

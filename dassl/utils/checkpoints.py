"""Checkpoints of tensors and plain values: written whole, read without running their code."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .reading import check_kind, read_text, reason
from .storage import atomic_copy, atomic_write, write_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

POINTER = "checkpoint"  # the file that names the newest checkpoint of its folder
BEST = "model-best.pth.tar"


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Return a checkpoint with its tensors on the CPU. Nothing in the file is executed.

    Scheduler objects and numpy scalars in a checkpoint of Dassl's original code are left out.
    Raises UserError if there is no such file, it is damaged, or it holds other objects.
    """
    from .tensor_files import read_tensors

    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}")
    checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    if "state_dict" in checkpoint:
        check_checkpoint(checkpoint, path)
    return checkpoint


_NONE = type(None)
# What a checkpoint's entries are, where they are there.
_ENTRIES: dict[str, type | tuple[type, ...]] = {
    "state_dict": dict,
    "epoch": int,
    "optimizer": (dict, _NONE),
    "scheduler": (dict, _NONE),
    "rng": dict,
    "scaler": (dict, _NONE),
    "class_keys": (list, _NONE),
    "classnames": (list, _NONE),
    "backbone_sha256": (str, _NONE),
    "sees": (list, _NONE),
}


def check_checkpoint(
    checkpoint: Any, what: str | os.PathLike, required: Collection[str] = ("state_dict",)
) -> None:
    """Raise UserError, calling it `what`, unless these are the entries of a model's checkpoint."""
    import torch

    check_kind(checkpoint, dict, what)
    for name in required:
        if name not in checkpoint:
            raise UserError(f"{what} is no checkpoint of a model: it has no entry {name!r}")
    entries = {**_ENTRIES, "val_result": (int, float, torch.Tensor, _NONE)}
    for name, kind in entries.items():
        if name in checkpoint:
            check_kind(checkpoint[name], kind, f"{what}: its entry {name!r}")
    for name, value in checkpoint["state_dict"].items():
        check_kind(name, str, f"{what}: a name in its state_dict")
        check_kind(value, torch.Tensor, f"{what}: {name!r} in its state_dict")
        if value.is_complex():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{what}: {name!r} in its state_dict holds {kind} values")
    for name, value in (checkpoint.get("scaler") or {}).items():
        check_kind(value, (int, float), f"{what}: {name!r} of its scaler")
    if checkpoint.get("epoch", 0) < 0:
        raise UserError(f"{what} claims {checkpoint['epoch']} epochs")
    keys = checkpoint.get("class_keys")
    names = checkpoint.get("classnames") or keys or []
    for name in (*(keys or []), *names):
        check_kind(name, str, f"{what}: a class's name")
    if keys is not None and len(names) != len(keys):
        raise UserError(f"{what} has {len(names)} names for {len(keys)} classes")


@contextmanager
def fitting(what: str | os.PathLike) -> Iterator[None]:
    """Turn what a state of other shape or kind raises when it is put back into a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    # Whatever the code that takes it finds missing, or can't do with it.
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"{what} does not fit: {told}") from None


def save_plain(state: dict[str, Any], path: str | os.PathLike) -> None:
    """Write tensors and plain values with `torch.save`, whole or not at all.

    Raises TypeError naming the entry that `weights_only` loading would refuse.
    """
    _check_plain(state, "checkpoint")
    write_tensors(state, path)


def _check_plain(value: Any, where: str) -> None:
    import torch

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
    pointer = Path(folder) / POINTER
    try:
        name = read_text(pointer, 4096).strip() if pointer.exists() else ""
    except OSError:  # no permission
        name = ""
    if not name:
        raise UserError(f"no checkpoint in {folder}")
    if name != Path(name).name:
        raise UserError(f"{pointer} names {name!r}, which is no file of its folder")
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
    check_checkpoint(checkpoint, path, required=("state_dict", "epoch"))
    with fitting(path):
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
    import torch

    checkpoint = load_checkpoint(weight_path)
    given = checkpoint.get("state_dict", checkpoint)
    given = {k: v for k, v in given.items() if isinstance(k, str) and torch.is_tensor(v)}
    given = _without_module(given)
    own = model.state_dict()
    fits = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise UserError(
            f"{weight_path} fits no parameter of {type(model).__name__}: it has "
            f"{', '.join(list(given)[:5])}; wanted are {', '.join(list(own)[:5])}"
        )
    model.load_state_dict(own | fits)
    print(f"Loaded {len(fits)} of {len(own)} tensors from {weight_path}")
    if unused := [name for name in given if name not in fits]:
        print(f"Not used, since name or shape differ: {', '.join(unused)}")


def _without_module(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("module."): value for name, value in state_dict.items()}

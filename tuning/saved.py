"""What of a method its checkpoints hold, and how it is put back.

Shape letters: method.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dassl.utils import UserError

if TYPE_CHECKING:
    from clip.prompting import Encoders

    from .method import Classes

ASSUMED = "assumed to be this run's classes in order: the checkpoint doesn't tell its classes"


def rows_of(keys: Sequence[str], among: Sequence[str]) -> list[int] | None:
    """Where each key stands in `among`; None if one isn't there."""
    place = {key: i for i, key in enumerate(among)}
    if any(key not in place for key in keys):
        return None
    return [place[key] for key in keys]


def untrained_classes(own: Sequence[str], keys: Sequence[str]) -> str:
    """Why not all of a run's classes `own` are among those a checkpoint knows; "" if they are.

    keys: of the checkpoint's classes; empty if unknown but others than this run's.
    """
    if not keys:
        return "the checkpoint doesn't tell its classes, and this run's are the new ones"
    known = set(keys)
    new = [key for key in own if key not in known]
    if not new:
        return ""
    if len(new) == len(own):
        return f"this run's {len(own)} classes are new to it"
    shown = ", ".join(new[:3]) + (" …" if len(new) > 3 else "")
    return f"{len(new)} of this run's {len(own)} classes are new to it ({shown})"


class Saved(nn.Module):
    """A method's part that names, saves and loads what it trains and what it prepared."""

    classes: Classes
    encoders: Encoders
    _at_start: dict[str, torch.Tensor]
    # The submodules it trains, by attribute name; everything else is frozen.
    trained_modules: tuple[str, ...] = ()
    # Those of them that are prompts: means of two copies of them are prompts, too.
    prompt_modules: tuple[str, ...] = ()
    # Trained parameters with one row per class, by a name of theirs in `names()`.
    class_bound: tuple[str, ...] = ()
    # Buffers that checkpoints keep whatever becomes of them, as those that `prepare` fills. In
    # `class_bound`, by their own name, if they have one row per class. What else training changes
    # is kept, too: persistent buffers, and parameters that aren't trained, such as an average's.
    prepared: tuple[str, ...] = ()
    # Those of them that no test reads: a model without them is whole.
    read_in_training: tuple[str, ...] = ()
    # Trained parameters with one row per training image (`Classes.images`): a checkpoint has as
    # many as its run had.
    image_bound: tuple[str, ...] = ()
    # Whether all that it trains are rows of its classes' own, so that a class that it wasn't
    # trained on is tested zero-shot: its rows stay as they start, a prepared buffer's are zero.
    zero_shot_rows = False
    # What of a loaded checkpoint can't be applied to this run's classes, in a line; "": nothing.
    left_out = ""
    # Trained parameters with one row per data set trained on, the run's own first: a model for one
    # takes the first of several.
    data_set_bound: tuple[str, ...] = ()

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters this method trains, by the names they have in checkpoints.

        A name is qualified by its module's: two modules may have parameters of one name.
        """
        return {
            f"{module}.{name}": parameter
            for module in self.trained_modules
            for name, parameter in getattr(self, module).named_parameters()
        }

    def names(self) -> dict[str, str]:
        """The name in `trained()` by each name that a checkpoint may have for a parameter.

        Beside that name itself it is the one without its module, as older checkpoints have it,
        unless two modules have it.
        """
        own = list(self.trained())
        short = [name.partition(".")[2] for name in own]
        old = {s: name for s, name in zip(short, own, strict=True) if short.count(s) == 1}
        return {**old, **{name: name for name in own}}

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The values of `trained()`, detached."""
        return {name: p.detach().clone() for name, p in self.trained().items()}

    def check_source(self, settings: Mapping[str, Any]) -> None:
        """Raise UserError where a file tells `settings` of its own that aren't this method's."""

    def from_original(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a model of the original code is here: its values, by names of `names()`.

        Raises:
            UserError: the file lacks what this method can't be tested without.
        """
        if lacking := [name for name in self.prepared if name not in self.read_in_training]:
            raise UserError(
                f"the original code's file lacks {', '.join(lacking)}, which this method's tests "
                "read and only its training makes: train from it (MODEL.INIT_WEIGHTS)"
            )
        return state

    @torch.no_grad()
    def load_trained(
        self, state: dict[str, torch.Tensor], keys: Sequence[str] | None, partial: bool = False
    ) -> list[str]:
        """Copy values in by name; class-bound ones by class key. Returns the names taken.

        Args:
            state: values by names of `names()`.
            keys: the class keys they were trained on; None if unknown, empty if unknown but others
                than this run's.
            partial: accept missing names and leave what is bound to other classes (a start for
                training) instead of refusing.

        Raises:
            UserError: names or shapes differ, or class-bound values of other classes.
        """
        own, names = self.trained(), self.names()
        state = {names.get(name, name): value for name, value in state.items()}
        class_bound = {names[name] for name in self.class_bound if name in names}
        image_bound = {names[name] for name in self.image_bound}
        _check_names(own, state, partial)
        self._fit_data_sets(state, partial)
        taken = []
        for name, value in state.items():
            if name in class_bound:
                rows = self._own_rows(name, value, keys)
                if rows is None and not partial and self.zero_shot_rows and keys is not None:
                    rows = self._rows_or(own[name].detach().clone(), value, keys)
                if rows is None and partial:
                    continue
                if rows is None:
                    raise UserError(
                        f"{name} is learned per class, and the checkpoint was trained on other "
                        "classes than this run's: it can't be applied to them"
                    )
                value = rows
            if name in image_bound and len(value) != len(own[name]):
                if partial:  # the rows of other images start nothing
                    continue
                if value.shape[1:] == own[name].shape[1:]:
                    own[name].data = own[name].new_empty(value.shape)
            if value.shape != own[name].shape:
                raise UserError(
                    f"{name} has shape {tuple(value.shape)} in the checkpoint and "
                    f"{tuple(own[name].shape)} here: set the method's options as in training"
                )
            own[name].copy_(value)
            taken.append(name)
        return taken

    def _fit_data_sets(self, state: dict[str, torch.Tensor], partial: bool) -> None:
        """Take the run's own row of what has one per data set; a start takes none of several."""
        own, names = self.trained(), self.names()
        for name in (names[name] for name in self.data_set_bound if names[name] in state):
            if partial and not len(state[name]) == len(own[name]) == 1:
                del state[name]
            elif len(own[name]) == 1:
                state[name] = state[name][:1]

    def _own_rows(
        self, name: str, value: torch.Tensor, keys: Sequence[str] | None
    ) -> torch.Tensor | None:
        if value.dim() != self.trained()[name].dim():  # not per class in the checkpoint
            return value
        if keys is None:
            if len(value) != len(self.classes.keys):
                return None
            print(f"The rows of {name} are {ASSUMED}")
            return value
        rows = rows_of(self.classes.keys, keys)
        return None if rows is None else value[rows]

    def held(self) -> dict[str, torch.Tensor]:
        """What it holds beside the towers and what it trains.

        That is its persistent buffers and its other parameters, by the names modules give them.
        """
        elsewhere = (
            *self.encoders.parameters(),
            *self.encoders.buffers(),
            *self.trained().values(),
        )
        ids = {id(tensor) for tensor in elsewhere}
        tensors = self.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in tensors.items() if id(tensor) not in ids}

    def remember_start(self) -> None:
        """Take what it holds now for its start, which is made anew wherever it is built."""
        self._at_start = {name: tensor.detach().clone() for name, tensor in self.held().items()}

    def _rows_or(
        self, start: torch.Tensor, value: torch.Tensor, keys: Sequence[str]
    ) -> torch.Tensor | None:
        """`start` with the rows of `value` for the classes that it has; None if they don't fit."""
        if value.shape[1:] != start.shape[1:] or len(value) < len(keys):
            return None
        place = {key: row for row, key in enumerate(keys)}
        known = [i for i, key in enumerate(self.classes.keys) if key in place]
        start[known] = value[[place[self.classes.keys[i]] for i in known]].to(start)
        new = len(self.classes.keys) - len(known)
        if new and not self.left_out:
            all_ = len(self.classes.keys)
            self.left_out = f"{new} of this run's {all_} classes are new to it: tested zero-shot"
            print(self.left_out)
        return start

    def prepared_state(self) -> dict[str, torch.Tensor]:
        """The values of the buffers in `prepared`, and of what is held and no longer as built."""
        state = {name: self.get_buffer(name) for name in self.prepared}
        for name, tensor in self.held().items():
            start = self._at_start.get(name)
            if start is None or start.shape != tensor.shape or not torch.equal(start, tensor):
                state[name] = tensor
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def load_prepared(self, state: Mapping[str, torch.Tensor], keys: Sequence[str] | None) -> None:
        """Put `prepared_state` back; class-bound values by class key, see `load_trained`.

        Raises:
            UserError: other names, or values that are or may be class-bound, of other classes.
        """
        held = self.held()
        lacking = [name for name in self.prepared if name not in state]
        unknown = [name for name in state if name not in held and name not in self.prepared]
        if lacking or unknown:
            raise UserError(
                f"the checkpoint has {', '.join(state) or 'nothing'} beside what was trained, this "
                f"method {', '.join({*self.prepared, *held}) or 'nothing'}: it is of another method"
            )
        for name, value in state.items():
            own = held[name] if name in held else self.get_buffer(name)
            self._put(name, self._rows_held(name, value, keys).to(own))

    def _rows_held(
        self, name: str, value: torch.Tensor, keys: Sequence[str] | None
    ) -> torch.Tensor:
        """A held value for this run's classes."""
        if name in self.class_bound:
            rows = rows_of(self.classes.keys, keys) if keys is not None else None
            if keys is None and len(value) == len(self.classes.keys):
                print(f"{name}: the checkpoint's classes are {ASSUMED}")
                rows = list(range(len(value)))
            if rows is not None:
                return value[rows]
            zeros = value.new_zeros(len(self.classes.keys), *value.shape[1:])
            if self.zero_shot_rows and keys is not None:
                known = self._rows_or(zeros, value, keys)
                if known is not None:
                    return known
            raise UserError(f"{name} has a row per class, and these are other classes")
        per_class = keys and value.dim() and len(value) == len(keys) and name not in self.prepared
        if per_class and list(keys or ()) != list(self.classes.keys):
            raise UserError(
                f"{name} may have a row per class, and these are other classes: the method names "
                "it in `class_bound` if so, in `prepared` if not"
            )
        return value

    def _put(self, name: str, value: torch.Tensor) -> None:
        place, _, leaf = name.rpartition(".")
        module = self.get_submodule(place)
        if leaf in module._parameters:
            module.get_parameter(leaf).data = value
        else:
            setattr(module, leaf, value)


def _check_names(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], partial: bool
) -> None:
    """Raise UserError where a checkpoint's parameters aren't the method's."""
    unknown = [name for name in state if name not in own]
    missing = [name for name in own if name not in state]
    if unknown or (missing and not partial):
        raise UserError(
            "the checkpoint is of another method: "
            + "; ".join(
                f"{what} {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
                for what, names in (("it lacks", missing), ("it also has", unknown))
                if names
            )
        )

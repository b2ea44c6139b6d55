"""Class names as the text tower reads them: cut to a length, and told apart or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from clip.clip import _tokenizer
from dassl.utils import UserError

from .method import Classes

_ENDS = 2  # tokens around a prompt, SOS and EOT


def cut_names(classes: Classes, tokens: int) -> Classes:
    """Return the classes with names of at most `tokens` tokens each; 0 leaves all as they are.

    How many were cut is printed.

    Raises:
        UserError: `tokens` is negative.
    """
    if tokens < 0:
        raise UserError(f"DATASET.NAME_TOKENS is {tokens}; it is 0 for no limit, or more")
    if not tokens:
        return classes
    names = [_cut(name, tokens) for name in classes.names]
    changed = [(a, b) for a, b in zip(classes.names, names, strict=True) if a != b]
    if changed:
        old, new = changed[0]
        print(f"{len(changed)} class names are cut to {tokens} tokens, first {old!r} to {new!r}")
    return replace(
        classes,
        names=names,
        label_space=_cut_all(classes.label_space, tokens),
        others=_cut_all(classes.others, tokens),
        further=tuple(cut_names(further, tokens) for further in classes.further),
    )


def _cut_all(names: Mapping[str, str], tokens: int) -> dict[str, str]:
    return {key: _cut(name, tokens) for key, name in names.items()}


def _cut(name: str, tokens: int) -> str:
    ids = _tokenizer.encode(name.replace("_", " "))
    return name if len(ids) <= tokens else _tokenizer.decode(ids[:tokens]).strip()


def told_alike(names: Sequence[str]) -> list[list[int]]:
    """Return which of the names, by index, are one sequence of tokens to the text tower."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for c, name in enumerate(names):
        groups[tuple(_tokenizer.encode(name.replace("_", " ")))].append(c)
    return [group for group in groups.values() if len(group) > 1]


def alike(keys: Sequence[str], names: Sequence[str]) -> str:
    """Return a line if some classes have prompts that are token for token the same, or ""."""
    shown = [n if n == k else f"{k} ({n})" for k, n in zip(keys, names, strict=True)]
    groups = [" = ".join(shown[c] for c in group) for group in told_alike(names)]
    if not groups:
        return ""
    return (
        "Classes whose prompts are token for token the same, so that text can't tell them "
        f"apart: {'; '.join(groups)}"
    )


def say_alike(classes: Classes) -> None:
    """Print what `alike` says."""
    if line := alike(classes.keys, classes.names):
        print(line)


def remarks_on(names: Mapping[str, str], template: str) -> list[str]:
    """Return what is to be told of classes' names by key before a run, a line each."""
    lines = alike(list(names), list(names.values())), too_long(list(names.values()), template)
    return [line for line in lines if line]


def too_long(names: Sequence[str], template: str, most: int = 77) -> str:
    """Return a line if some names are too long for the text tower, whose usual length is `most`."""
    length = {n: len(_tokenizer.encode(template.replace("{}", n.replace("_", " ")))) for n in names}
    long = [name for name in names if length[name] + _ENDS > most]
    if not long:
        return ""
    return (
        f"{len(long)} names are too long for the text tower's {most} tokens, first {long[0]!r}: "
        "a run ends there; DATASET.NAME_TOKENS cuts names"
    )

"""Sentences of each class's own: DATASET.SENTENCES names a JSON file, {class name: [sentence, …]}.

Such as a language model's descriptions. A method that takes them says what for
(`Method.sentences_for`); they stand in the place of hand-written templates.

Shape letters: method.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from clip.clip import _tokenizer
from clip.prompting import Encoders
from dassl.config import CfgNode
from dassl.utils import UserError, file_sha256, read_json, suggest

from .method import Classes, Method, unit

if TYPE_CHECKING:
    from .run import Run

KEY = "DATASET.SENTENCES"
_ENDS = 2  # tokens around a sentence, SOS and EOT
_AT_ONCE = 1024  # sentences in one pass of the text tower


def read_sentences(path: str) -> dict[str, list[str]]:
    """Return the sentences of a file by class name, where spaces stand for underscores.

    A {} in a sentence is still to be filled with the name.

    Raises:
        UserError: there is no such file, or it isn't {name: [sentence, …]}, or names a class twice,
            or has an empty list or sentence.
    """
    try:
        found = read_json(path, dict, unique=True)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None
    read: dict[str, list[str]] = {}
    for name, sentences in found.items():
        where = f"{KEY}: {path}: the entry of {name!r}"
        if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
            raise UserError(f"{where} must be a list of sentences, [sentence, …]")
        if not sentences or not all(s.strip() for s in sentences):
            raise UserError(f"{where} has {'an empty sentence' if sentences else 'no sentence'}")
        if _plain(name) in read:
            raise UserError(f"{where} is there twice, with spaces and with underscores")
        read[_plain(name)] = sentences
    return read


def resolve_cfg(cfg: CfgNode, name: str, method: type[Method]) -> None:
    """Unset DATASET.SENTENCES, and remark on it, where the method of trainer `name` has none."""
    if cfg.DATASET.SENTENCES and not method.sentences_for:
        cfg.DATASET.SENTENCES = ""
        cfg.remark(KEY, f"{name} takes no sentences of classes: {KEY} isn't read")


def with_sentences(classes: Classes, path: str, method: type[Method]) -> Classes:
    """Return the classes with their sentences, `described`; without a path as they are.

    Where training alone takes them, what is missing of a run's own classes is said in
    `undescribed`, to be raised when that begins.

    Raises:
        UserError: testing takes them, too, and: as `read_sentences`, or a class isn't in the file.
    """
    if not path:
        return classes
    try:
        found = read_sentences(path)
        described = {
            key: [s.replace("{}", _plain(name)) for s in found[_plain(name)]]
            for key, name in _seen_names(classes).items()
            if _plain(name) in found
        }
        _refuse_missing(classes, described, found, path)
    except UserError as error:
        if method.sentences_for == "features":
            raise
        return replace(classes, undescribed=str(error))
    return replace(classes, described=described)


def recorded_file(run: Run) -> str:
    """Return the file of sentences that a run's text features are made of, "" if they are of none.

    Raises:
        UserError: it isn't the one that the run recorded.
    """
    path = run.cfg.DATASET.SENTENCES
    if not path or run.trainer_class.method_class.sentences_for != "features":
        return ""
    if file_sha256(path) != (run.identity or {"files": {}})["files"].get(KEY):
        raise UserError(f"{KEY}: {path} is another file than when {run.folder} was tested")
    return path


def check_described(classes: Classes) -> None:
    """Raise UserError if training is to take sentences, and not all classes have them."""
    if classes.undescribed:
        raise UserError(classes.undescribed)


def sentences_of(classes: Classes, keys: Sequence[str] | None = None) -> list[list[str]] | None:
    """Return those of each class, or of the classes with these keys; None where there is no file.

    Raises:
        UserError: a class has none, and others have.
    """
    if not classes.described:
        return None
    keys = classes.keys if keys is None else keys
    if missing := [key for key in keys if key not in classes.described]:
        raise UserError(
            f"{KEY}: there are no sentences of {len(missing)} classes whose names are taken in, "
            f"first {missing[0]!r}"
        )
    return [list(classes.described[key]) for key in keys]


def encode_sentences(
    encoders: Encoders, sentences: Sequence[Sequence[str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of C classes' n sentences the features (n,D), not normalized, and the classes' counts (C,).

    How many a class has is printed.

    Raises:
        UserError: one is longer than the text tower takes.
    """
    count = [len(each) for each in sentences]
    flat = [sentence for each in sentences for sentence in each]
    for sentence in flat:
        length, most = len(_tokenizer.encode(sentence)) + _ENDS, encoders.text.context_length
        if length > most:
            raise UserError(
                f"a class's sentence has {length} tokens, the text tower takes {most}: shorten "
                f"{sentence!r}"
            )
    print(f"Sentences of a class: {min(count)} to {max(count)}")
    parts = range(0, len(flat), _AT_ONCE)
    encoded = torch.cat([encoders.text.encode(flat[i : i + _AT_ONCE]) for i in parts])
    return encoded, torch.tensor(count, device=encoded.device)


def pad_sentences(
    encoders: Encoders, sentences: Sequence[Sequence[str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of C classes' up to n sentences the features (n,C,D), zeros where a class has no n-th.

    And (n,C), at least fp32: 1 where there is one, 0 elsewhere. Raises as `encode_sentences`.
    """
    encoded, count = encode_sentences(encoders, sentences)
    each = pad_sequence(list(encoded.split(count.tolist())))
    place = torch.arange(len(each), device=count.device).unsqueeze(1)
    return each, (place < count).to(torch.promote_types(each.dtype, torch.float32))


def mean_of_sentences(
    encoders: Encoders, classes: Classes, normalized: bool = True
) -> torch.Tensor | None:
    """(C,D), at least fp32: the mean of each class's sentences; None where it has none.

    normalized: whether it is one of normalized features.

    Raises:
        UserError: as `encode_sentences`.
    """
    sentences = sentences_of(classes)
    if sentences is None:
        return None
    encoded, count = encode_sentences(encoders, sentences)
    encoded = encoded.to(torch.promote_types(encoded.dtype, torch.float32))
    each = (unit(encoded) if normalized else encoded).split(count.tolist())
    return torch.stack([of_class.mean(dim=0) for of_class in each])


def _seen_names(classes: Classes) -> dict[str, str]:
    """Of the run's own classes, and of others where its method declares that it sees them."""
    return {**classes.others, **dict(zip(classes.keys, classes.names, strict=True))}


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _refuse_missing(
    classes: Classes, described: Mapping[str, object], found: Mapping[str, object], path: str
) -> None:
    names = [
        name for key, name in zip(classes.keys, classes.names, strict=True) if key not in described
    ]
    if names:
        near = suggest(_plain(names[0]), found)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"{KEY}: {path} has no sentences of {len(names)} of {len(classes.names)} classes: "
            f"{', '.join(map(repr, names[:3]))}{more}{near}"
        )

"""Whether results can stand in one row: of one configuration, and per data set on one data.

Compared is what their identities say. Results of before hold every method's settings, and nothing
about their data: of them, what both of two results have is compared.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import Any

from dassl.config.identity import data_differences, told
from experiments.results.scores import Score

# The sample is drawn by the seed; these aren't.
_OF_THE_DATASET = ("template",)
_OF_THE_CLASSES = ("classes", "test")


def shared_settings(scores: Iterable[Score]) -> tuple[dict[str, Any], set[str]]:
    """Return the settings of a row, and those that can't be compared.

    The latter are settings that only some results have and that this version doesn't know, such as
    a newer version's: what the others ran with can't be told.

    Raises:
        ValueError: the results differ in a setting.
    """
    told_by = [score for score in scores if score.settings]
    told_by.sort(key=lambda score: not score.identified)  # those that say more first
    unknown: set[str] = set()
    for score in told_by[1:]:
        keys, unsure = _differing(told_by[0], score)
        unknown |= unsure
        if keys:
            raise ValueError(f"mixed configurations: {_difference(told_by[0], score, keys)}")
    return (told_by[0].settings if told_by else {}), unknown


def _differing(one: Score, other: Score) -> tuple[list[str], set[str]]:
    """The settings in which two scores differ, and those of which that can't be told.

    One that only a newer version has counts at its default.
    """
    both = one.settings.keys() & other.settings.keys()
    keys = [key for key in both if one.settings[key] != other.settings[key]]
    alone = one.settings.keys() ^ other.settings.keys()
    if not (alone and one.identified and other.identified):
        return sorted(keys), set()
    keys += _beside_defaults(one.settings, other.settings)
    return sorted(keys), alone - defaults().keys()


def values_apart(one: dict[str, Any], other: dict[str, Any], only_common: bool = False) -> set[str]:
    """Return the settings in which two differ, by {key: value}.

    One that only one of them has counts at its default, or not at all if `only_common`.
    """
    apart = {key for key in one.keys() & other.keys() if one[key] != other[key]}
    return apart if only_common else apart | _beside_defaults(one, other)


def _beside_defaults(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The settings that only one has, at another value than their default."""
    alone = one.keys() ^ other.keys()
    if not alone:
        return set()
    known, both = defaults(), one | other
    return {key for key in alone & known.keys() if both[key] != known[key]}


@cache
def defaults() -> dict[str, Any]:
    """Return {key: default} of this version."""
    from tuning.defaults import default_settings

    return default_settings()


def _difference(one: Score, other: Score, keys: Sequence[str]) -> str:
    shown = "; ".join(
        f"{key} is {one.settings.get(key)!r} in {one.folder} and {other.settings.get(key)!r} in "
        f"{other.folder}"
        for key in keys[:2]
    )
    return shown + (f"; {len(keys) - 2} more settings differ" if len(keys) > 2 else "")


def check_data(scores: Iterable[Score]) -> None:
    """Check that what was tested on one data set was tested on the same data, whatever the seed.

    Raises:
        ValueError: it wasn't.
    """
    first: dict[Hashable, Score] = {}
    for score in scores:
        if not score.identified:
            continue
        for key, parts in (
            ((score.dataset, score.result.get("split")), _OF_THE_DATASET),
            ((score.dataset, score.result.get("split"), score.classes), _OF_THE_CLASSES),
        ):
            other = first.setdefault(key, score)
            found = data_differences(other.identity, score.identity, parts)
            if _splits(other, score):
                found.append("another split")
            if found:
                raise ValueError(
                    f"mixed data of {score.dataset}: {told(found)}, between {other.folder} and "
                    f"{score.folder}"
                )


def _splits(one: Score, other: Score) -> bool:
    hashes = {score.result.get("split_hash") for score in (one, other)} - {None, ""}
    return len(hashes) > 1

"""Which row is that of a method without DePT, under the same settings."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.results.agreement import values_apart
from experiments.results.records import Row
from experiments.results.scores import Key
from tuning.naming import bare_name, is_wrapped


def bare_keys(rows: Iterable[Row]) -> dict[Key, Key]:
    """Return {key of a row with DePT: key of the same without it}, where there is one."""
    rows = [row for row in rows if not row.corruption]
    found = ((row, bare_row(row, rows)) for row in rows)
    return {row.key: bare.key for row, bare in found if bare}


def bare_row(row: Row, rows: Iterable[Row]) -> Row | None:
    """Return the row of the method that DePT is around in `row`; None if there is none.

    It has the same config and the same changed settings, or agrees in all settings that both have:
    DePT's own don't reach it.
    """
    if not is_wrapped(row.trainer):
        return None
    named = (row.protocol, bare_name(row.trainer), row.shots, row.source)
    alike = [r for r in rows if (r.protocol, r.trainer, r.shots, r.source) == named]
    same = [r for r in alike if r.config == row.config]
    return next(iter(same or [r for r in alike if _agree(r, row)]), None)


def _agree(bare: Row, row: Row) -> bool:
    if not (bare.identified and row.identified):
        return False
    return values_apart(bare.settings, row.settings, only_common=True) <= {"TRAINER.NAME"}

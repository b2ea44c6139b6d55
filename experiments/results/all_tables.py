"""All tables of a summary."""

from __future__ import annotations

from experiments.results.compare import difference_tables
from experiments.results.summary import Summary
from experiments.results.tables import (
    USUAL,
    Layout,
    Table,
    by_what_is_seen,
    field_table,
    plain_tables,
)


def make_tables(summary: Summary, layout: Layout = USUAL) -> list[Table]:
    """Return the tables of all protocols that have records, and of differences.

    Raises UserError if `layout` names a trainer that has no runs.
    """
    tables = (by_what_is_seen if layout.by_sees else plain_tables)(summary, layout.ece)
    tables += difference_tables(summary, layout.against)
    return [*tables, field_table(summary)] if layout.field else tables

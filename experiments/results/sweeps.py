"""λ sweep and ablation: base-to-new rows that differ in one of DePT's settings."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.results import published
from experiments.results.folders import changed_settings
from experiments.results.summary import (
    AVERAGE,
    Record,
    Row,
    Summary,
    row_base_new_h,
    whole_datasets,
)
from tuning.naming import bare_name

LAMBDA = "TRAINER.DEPT.WEIGHT"
LAMBDAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class Setting:
    """A line of the paper's ablation table: what it changes, or the method without DePT.

    `name` is that of its line in experiments/published/ablation_coop.csv.
    """

    name: str
    label: str
    changes: dict[str, str]
    bare: bool = False


# The ablation, here alone: the plan's runs, the table's lines and the paper's numbers follow.
ABLATION = (
    Setting("itm_only", "ITM head only (CoOp)", {}, bare=True),
    Setting("no_fusion", "ITM + CAT, no test-time fusion", {"TRAINER.DEPT.FUSION": "none"}),
    Setting("shared_cwt", "one cwT shared by image and text", {"TRAINER.DEPT.CWT": "shared"}),
    Setting(
        "itm_classifier",
        "ITM classifier in place of the linear one",
        {"TRAINER.DEPT.HEAD": "similarity"},
    ),
    Setting("image_rows", "image features only in the CAT head", {"TRAINER.DEPT.ROWS": "image"}),
    Setting("dept", "ITM + CAT + test-time fusion (DePT)", {}),
)
ABLATED = {key for setting in ABLATION for key in setting.changes}
SWEPT = ABLATED | {LAMBDA}  # the settings in which the rows of a sweep differ


def add_sweeps(summary: Summary) -> None:
    """Append the records of the protocols `lambda` and `ablation`; `dataset` is the setting."""
    rows = [row for row in summary.rows if row.protocol == "base_to_new"]
    for family in sorted({_family(row) for row in rows}):
        mine = [row for row in rows if _family(row) == family]
        swept = [row for row in mine if set(_swept(row.changes)) <= {LAMBDA}]
        if any(_swept(row.changes) for row in swept):
            values = {_lambda(row): row for row in swept}
            lines = [(f"{v:g}", values[v], {"lambda": v}) for v in sorted(values) if v == v]
            summary.records += _lines("lambda", lines, "lambda_coop")
        if any(set(_swept(row.changes)) & ABLATED for row in mine):
            lines = [
                (setting.label, row, {"setting": setting.name})
                for setting in ABLATION
                for row in rows
                if _family(row) == _family_of(setting, family)
                and _swept(row.changes) == setting.changes
            ]
            summary.records += _lines("ablation", lines, "ablation_coop")


def _lambda(row: Row) -> float:
    return float(row.changes.get(LAMBDA, row.settings.get(LAMBDA, "nan")))


def is_swept(config: str) -> bool:
    """Whether a row stands in the sweeps' tables: λ is changed, or what a line of theirs says."""
    swept = _swept(changed_settings(config))
    return set(swept) == {LAMBDA} or swept in [s.changes for s in ABLATION if s.changes]


def _swept(changes: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in changes.items() if key in SWEPT}


def _family(row: Row) -> tuple[str, str, tuple[tuple[str, str], ...], int]:
    """What the rows of a sweep have in common; other changed settings too."""
    others = tuple(sorted((k, v) for k, v in row.changes.items() if k not in SWEPT))
    return row.trainer, row.config.partition("@")[0], others, row.shots


def _family_of(setting: Setting, family: tuple) -> tuple:
    trainer, *rest = family
    return (bare_name(trainer) if setting.bare else trainer, *rest)


def _lines(
    protocol: str, lines: list[tuple[str, Row, dict[str, str | float]]], table: str
) -> list[Record]:
    """Return a record per (label, row, keys of the paper's line), over the data sets all have."""
    if not lines:
        return []
    common = set.intersection(*(set(whole_datasets(row)) for _, row, _ in lines))
    records = []
    for label, row, keys in lines:
        names = [name for name in whole_datasets(row) if name in common]
        if not names:
            continue
        # The paper swept one method, over its eleven data sets.
        comparable = (
            common == set(published.datasets("base_to_new"))
            and SWEPT.issuperset(row.changes)
            and bare_name(row.trainer) == published.SWEPT
            and row.has_papers_backbone
            and row.shots == published.SHOTS
        )
        records.append(
            Record(
                protocol,
                row.trainer,
                row.config,
                row.shots,
                label,
                row_base_new_h(row, names),
                published.lookup(table, **keys) if comparable else {},
                source=AVERAGE if len(names) > 1 else names[0],
                sees=row.sees,
            )
        )
    return records

"""λ sweep and ablation: base-to-new rows that differ in one of DePT's settings."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.results import published
from scripts.results.summary import AVERAGE, Record, Row, Summary, row_base_new_h, whole_datasets

LAMBDA = "TRAINER.DEPT.WEIGHT"
LAMBDAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class Setting:
    """A line of the paper's ablation table: what it changes, or the method without DePT."""

    label: str
    changes: dict[str, str]
    bare: bool = False


ABLATION = (
    Setting("ITM head only (CoOp)", {}, bare=True),
    Setting("ITM + CAT, no test-time fusion", {"TRAINER.DEPT.FUSION": "none"}),
    Setting("one cwT shared by image and text", {"TRAINER.DEPT.CWT": "shared"}),
    Setting("ITM classifier in place of the linear one", {"TRAINER.DEPT.HEAD": "similarity"}),
    Setting("image features only in the CAT head", {"TRAINER.DEPT.ROWS": "image"}),
    Setting("ITM + CAT + test-time fusion (DePT)", {}),
)
PREFIX = "DePT_"  # how a method's name says that it is wrapped


def add_sweeps(summary: Summary) -> None:
    """Append the records of the protocols `lambda` and `ablation`; `dataset` is the setting."""
    rows = [row for row in summary.rows if row.protocol == "base_to_new"]
    swept = {_family(row) for row in rows if set(row.changes) == {LAMBDA}}
    values = [
        (float(row.changes.get(LAMBDA, row.settings.get(LAMBDA, "nan"))), row)
        for row in rows
        if _family(row) in swept and set(row.changes) <= {LAMBDA}
    ]
    for value, row in sorted(values, key=lambda pair: (_family(pair[1]), pair[0])):
        if value == value:  # a row that doesn't record its λ can't be placed
            summary.records += _line(row, "lambda", f"{value:g}", "lambda_coop", {"lambda": value})

    varied = {_family(row) for row in rows if _settings_of(row) - {LAMBDA}}
    for family in sorted(varied):
        for setting in ABLATION:
            trainer = family[0].removeprefix(PREFIX) if setting.bare else family[0]
            for row in rows:
                if _family(row) == (trainer, *family[1:]) and row.changes == setting.changes:
                    keys = {"setting": setting.label}
                    summary.records += _line(row, "ablation", setting.label, "ablation_coop", keys)


def _family(row: Row) -> tuple[str, str, int]:
    return row.trainer, row.config.partition("@")[0], row.shots


def _settings_of(row: Row) -> set[str]:
    known = {key for setting in ABLATION for key in setting.changes}
    return set(row.changes) & known


def _line(
    row: Row, protocol: str, label: str, table: str, keys: dict[str, str | float]
) -> list[Record]:
    names = whole_datasets(row)
    if not names:
        return []
    # The paper swept CoOp + DePT over its eleven data sets.
    comparable = (
        set(names) == set(published.datasets("base_to_new"))
        and row.trainer.removeprefix(PREFIX) == published.SWEPT
        and row.comparable
    )
    paper = published.lookup(table, **keys) if comparable else {}
    metrics = row_base_new_h(row, names)
    source = AVERAGE if len(names) > 1 else names[0]
    return [
        Record(protocol, row.trainer, row.config, row.shots, label, metrics, paper, source=source)
    ]

"""λ sweep and ablation: base-to-new rows that differ in one of DePT's settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from experiments.results import published
from experiments.results.agreement import defaults, values_apart
from experiments.results.configs import config_file
from experiments.results.records import AVERAGE, Record, Row
from experiments.results.summary import Summary, row_base_new_h, whole_datasets
from experiments.results.twins import bare_row
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
_UNCHANGED = next(s.name for s in ABLATION if not s.changes and not s.bare)
ABLATED = {key for setting in ABLATION for key in setting.changes}
SWEPT = ABLATED | {LAMBDA}  # the settings in which the rows of a sweep differ


def add_sweeps(summary: Summary) -> None:
    """Append the records of the protocols `lambda` and `ablation`; `dataset` is the setting.

    A sweep is two rows or more that differ in nothing else. What a row ran with is asked of its
    settings: a folder's name may be cut.
    """
    rows = [row for row in summary.rows if row.protocol == "base_to_new"]
    for family in _families(rows):
        for mine in _alike(family, ABLATED):
            told = ((_lambda(row), row) for row in mine)
            values = sorted((pair for pair in told if pair[0] == pair[0]), key=itemgetter(0))
            if len({value for value, _ in values}) > 1:
                lines = [(f"{value:g}", row, {"lambda": value}) for value, row in values]
                _add(summary, "lambda", lines, {LAMBDA})
        for mine in _alike(family, {LAMBDA}):
            if len(mine) > 1:
                _add(summary, "ablation", _ablation(mine, rows), ABLATED)


def _families(rows: list[Row]) -> list[list[Row]]:
    """Rows of one trainer, config and number of shots that differ in swept settings alone."""
    families: list[list[Row]] = []
    for row in rows:
        if not SWEPT & (row.settings.keys() | row.changes.keys()):
            continue
        for family in families:
            other = family[0]
            same = (row.trainer, _file(row), row.shots) == (
                other.trainer,
                _file(other),
                other.shots,
            )
            if same and not _apart(row, other):
                family.append(row)
                break
        else:
            families.append([row])
    return families


def _alike(rows: list[Row], keys: Iterable[str]) -> list[list[Row]]:
    """The rows apart by their values of these settings."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_value(row, key) for key in sorted(keys)), []).append(row)
    return list(groups.values())


def _ablation(mine: list[Row], rows: list[Row]) -> list[tuple[str, Row, dict[str, Any]]]:
    """The lines of the ablation among rows that differ in ablated settings alone."""
    home: dict[str, Any] = {}
    for key in ABLATED:
        found = [_value(row, key) for row in mine]
        usual = _usual(mine[0], key)
        home[key] = usual if usual in found else max(found, key=found.count)
    lines = []
    for setting in ABLATION:
        wanted = home | setting.changes
        if setting.bare:
            bare = next(filter(None, (bare_row(row, rows) for row in mine)), None)
            chosen = [bare] if bare else []
        elif setting.changes and wanted == home:
            continue  # the command line changed it throughout
        else:
            chosen = [row for row in mine if all(_value(row, k) == v for k, v in wanted.items())]
        lines += [(setting.label, row, {"setting": setting.name}) for row in chosen]
    return lines


def _apart(one: Row, other: Row) -> set[str]:
    """The settings in which two rows differ, those of the sweeps left out."""
    if one.settings and other.settings:
        apart = values_apart(one.settings, other.settings)
    else:
        a, b = one.changes, other.changes
        apart = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
    return apart - SWEPT


def _file(row: Row) -> str:
    """The name of its config's file."""
    return row.config.partition("@")[0]


def _value(row: Row, key: str) -> Any:
    """What a row ran with: as it says, as its folder's name says, or the usual."""
    if key in row.settings:
        return row.settings[key]
    return row.changes[key] if key in row.changes else _usual(row, key)


def _lambda(row: Row) -> float:
    try:
        return float(_value(row, LAMBDA))
    except (TypeError, ValueError):  # a cut name, and no settings
        return float("nan")


def _usual(row: Row, key: str) -> Any:
    """A setting's value where no command line changed it."""
    from dassl.config import file_values

    file = config_file(row.trainer, _file(row), "")
    own = file_values(file) if file.is_file() else {}
    return own.get(key, defaults().get(key))


def _add(
    summary: Summary, protocol: str, lines: list[tuple[str, Row, dict[str, Any]]], varied: set[str]
) -> None:
    """Append the records of a sweep; its rows of changed settings stand there alone."""
    names = _common([whole_datasets(row) for _, row, _ in lines])
    shown = [line for line in lines if names and set(names) <= set(whole_datasets(line[1]))]
    trainer = lines[-1][1].trainer
    if sum(row.trainer == trainer for _, row, _ in shown) < 2:
        return  # too few to compare: they stand in the table of base to new
    at_home = {"lambda": _usual(lines[-1][1], LAMBDA), "setting": _UNCHANGED}
    home = next((row.key for _, row, keys in lines if keys.items() <= at_home.items()), None)
    for label, row, keys in lines:
        if row.trainer == trainer and row.key != home:
            summary.swept[row.key] = home
        if names and (label, row, keys) not in shown:
            absent = ", ".join(name for name in names if name not in whole_datasets(row))
            summary.remarks.append(f"{protocol}: without {label} ({row.name}): no {absent} yet")
    summary.records += [_record(protocol, line, names, varied) for line in shown]


def _common(whole: list[list[str]]) -> list[str]:
    """The data sets that all lines have, without lines that have none; else those of the most."""
    found = [names for names in whole if names]
    common = [name for name in dict.fromkeys(sum(found, [])) if all(name in n for n in found)]
    if common or not found:
        return common
    listed: list[str] = sum(found, [])
    return [max(dict.fromkeys(listed), key=listed.count)]


def _record(
    protocol: str, line: tuple[str, Row, dict[str, Any]], names: list[str], varied: set[str]
) -> Record:
    label, row, keys = line
    # The paper swept one method, over its eleven data sets.
    comparable = (
        set(names) == set(published.datasets("base_to_new"))
        and varied.issuperset(row.changes)
        and bare_name(row.trainer) == published.SWEPT
        and row.has_papers_backbone
        and row.shots == published.SHOTS
    )
    paper = published.lookup(f"{protocol}_coop", **keys) if comparable else {}
    record = row.record(
        label,
        row_base_new_h(row, names),
        over=names,
        source=AVERAGE if len(names) > 1 else names[0],
        family=_changed_beside(row),
    )
    return replace(record, protocol=protocol, published=paper)


def _changed_beside(row: Row) -> str:
    """The config and its changed settings, those of the sweeps left out."""
    others = [f"{key}={value}" for key, value in row.changes.items() if key not in SWEPT]
    return "@".join(filter(None, [_file(row), ",".join(others)]))

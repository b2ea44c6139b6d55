"""Single values in long form: one line for each run, or pair of runs, and metric.

What a value belongs to stands beside it: protocol, data set, method, seed, and what it ran with.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dassl.utils import UserError, atomic_write, json_text
from dassl.utils.cli import write_csv_rows
from experiments.results import published
from experiments.results.records import HALVES, Row
from experiments.results.scores import Score
from experiments.results.summary import Summary

_OF_A_RUN = ("accuracy", "macro_f1", "perclass_accuracy", "ece")  # as in result.json
KINDS = (".csv", ".json")


def values(summary: Summary) -> list[dict[str, Any]]:
    """Return a dict for each value, in percent; all have the same keys.

    metric: accuracy, macro_f1, perclass_accuracy or ece of a run; base and new, the accuracies of
    either half where both are told apart at once; h, of the two runs of a data set and seed. seed
    is None where a number depends on none. config_sha256 is that of the settings that a row shares,
    cut to 16 digits.
    """
    lines = []
    for score in summary.scores:
        lines += [_line(score, metric, value) for metric, value in _metrics(score)]
    rows = {row.key: row for row in summary.rows if row.protocol in HALVES}
    firsts: dict[tuple, Score] = {}
    for score in summary.scores:
        if score.key in rows:
            firsts.setdefault((score.key, score.dataset, score.seed), score)
    for (key, name, seed), score in firsts.items():
        if (h := _h(rows[key], name, seed)) is not None:
            lines.append(_line(score, "h", h) | {"classes": "base and new"})
    return lines


def _metrics(score: Score) -> Iterator[tuple[str, float]]:
    for metric in _OF_A_RUN:
        value = score.accuracy if metric == "accuracy" else score.result.get(metric)
        if value is not None:
            yield metric, float(value)
    yield from score.halves.items()


def _h(row: Row, name: str, seed: int) -> float | None:
    base, new = (row.cells.get((name, part), {}).get(seed) for part in ("base", "new"))
    return None if base is None or new is None else published.harmonic_mean(base, new)


def _line(score: Score, metric: str, value: float) -> dict[str, Any]:
    versions = score.result.get("versions", {})
    settings = json.dumps(score.settings, sort_keys=True, default=str)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return {
        "protocol": score.protocol,
        "source": score.source,
        "dataset": score.dataset,
        "classes": score.classes,
        "trainer": score.trainer,
        "config": score.config,
        "shots": score.shots,
        "seed": score.seed if score.seeded else None,
        "corruption": score.corruption,
        "severity": score.severity or None,
        "metric": metric,
        "value": value,
        "sees": " ".join(score.sees),
        "backbone": score.backbone,
        "backbone_sha256": score.result.get("backbone_sha256"),
        "config_sha256": digest if score.settings else None,
        "fewshot_hash": score.result.get("fewshot_hash"),
        "dept": versions.get("dept"),
        "torch": versions.get("torch"),
    }


def write_values(summary: Summary, path: str) -> None:
    """Write them as CSV or JSON, by the file's ending. Raises UserError for another."""
    kind = Path(path).suffix
    if kind not in KINDS:
        raise UserError(f"--per-seed {path}: name a file that ends in .csv or .json")
    lines = values(summary)
    if kind == ".json":
        text = json_text(lines, indent=1) + "\n"
    else:
        out = io.StringIO()
        write_csv_rows(out, [list(lines[0]), *(line.values() for line in lines)])
        text = out.getvalue()
    with atomic_write(path) as file:
        file.write(text)

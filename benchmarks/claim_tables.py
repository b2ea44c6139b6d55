"""What is measured of a claim's runs, and the tables of it."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks import timing
from benchmarks.convergence import epochs_to, losses_of
from benchmarks.method_setup import MethodSetup, Settings, images
from dassl.config.severities import OF_IMAGES, TYPOS
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, find_checkpoint, load_checkpoint, read_json, write_json
from dassl.utils.cli import escape_markdown, markdown_table
from experiments.chains import Chain
from experiments.results.published import harmonic_mean
from experiments.runner import has_result, read_result
from tuning.claims import Claim, Row

Result = dict[str, Any]  # of one run


@dataclass(frozen=True)
class Runs:
    """A row's chains by data set and seed; None where they can't be made yet."""

    row: Row
    chains: Mapping[tuple[str, int], Chain | None]


def measured(claim: Claim, table: Sequence[Runs], failed: Collection[Path] = ()) -> dict[str, Any]:
    """The rows of a claim that are complete, run by run; the others are `missing`.

    failed: folders of runs that were refused or broke off, whatever stands there.
    """
    rows, missing = [], []
    for runs in table:
        undone = [
            f"{dataset}, seed {seed}"
            for (dataset, seed), found in runs.chains.items()
            if found is None
            or not all(has_result(job) and job.folder not in failed for job in found.jobs)
        ]
        if undone:
            missing.append(f"{runs.row.name}: {'; '.join(undone)}")
            continue
        results = [
            _result(runs.row, *where, found) for where, found in runs.chains.items() if found
        ]
        rows.append(
            {
                "name": runs.row.name,
                "trainer": runs.row.trainer,
                "options": dict(runs.row.options),
                "control": runs.row in claim.controls,
                "runs": results,
            }
        )
    return {"claim": claim.says, "measures": list(claim.measures), "rows": rows, "missing": missing}


def _result(row: Row, dataset: str, seed: int, found: Chain) -> Result:
    """What one seed's chain gave, in percent."""
    train, test, *corrupted = found.jobs
    base, new = read_result(train)["accuracy"], read_result(test)["accuracy"]
    result: Result = {
        "dataset": dataset,
        "seed": seed,
        "base": base,
        "new": new,
        "h": harmonic_mean(base, new),
        "parameters": _parameters(row, train.folder),
    }
    if (train.folder / "metrics.jsonl").is_file():
        try:
            losses = losses_of(train.folder)
        except UserError:  # no loss of that name: its speed isn't compared
            losses = []
        if losses:
            result |= {"cross_entropy": losses[-1], "epochs_to_95": epochs_to(losses)}
    prompt = read_result(train).get("prompt")
    result |= {"prompt": prompt} if prompt else {}
    if corrupted:
        under: dict[str, dict[str, float]] = {"base": {}, "new": {}}
        for job in corrupted:
            outcome = read_result(job)
            under[outcome["classes"]][outcome["corruption"]["name"]] = outcome["accuracy"]
        result["corrupted"] = under
    return result


def _parameters(row: Row, folder: Path) -> int:
    """How many numbers a run trained: those in its checkpoint."""
    if not any(folder.glob("*/model*.pth.tar*")):
        return 0  # nothing was
    name = TRAINER_REGISTRY.get(row.trainer).model_name
    state = load_checkpoint(find_checkpoint(folder, name))["state_dict"]
    return sum(value.numel() for value in state.values())


def of_cost(rows: Sequence[Row], args: argparse.Namespace) -> dict[str, Any]:
    """Trained parameters, and seconds of a step, in turn; read where it was measured before."""
    asked = {key: getattr(args, key) for key in ("backbone", "classes", "repeats")}
    asked |= {"rows": {row.name: [row.trainer, dict(row.options)] for row in rows}}
    file = args.output / "cost" / f"{rows[0].trainer}.json"
    if file.is_file():
        known = read_json(file, dict)
        if known.get("asked") == asked or args.read_only:
            return known
    if args.read_only:
        return {}
    setups = {}
    for row in rows:
        options = tuple(chain.from_iterable(row.options.items()))
        settings = Settings(row.trainer, args.backbone, args.classes, options=options)
        setups[row.name] = MethodSetup(settings, settings.model(), fast=True)
    calls = {name: _step_of(setup) for name, setup in setups.items()}
    device = next(iter(setups.values())).device
    times = timing.interleaved(calls, args.repeats, device)
    seconds = {name: time.wall for name, time in times.items()}
    parameters = {
        name: sum(p.numel() for p in setup.method.trained().values())
        for name, setup in setups.items()
    }
    cost = {"asked": asked, "parameters": parameters, "seconds": seconds}
    write_json(cost, file)
    return cost


def _step_of(setup: MethodSetup) -> Any:
    image = images(setup.batch, setup.model)
    label = torch.arange(setup.batch, device=setup.device) % len(setup.method.classes.keys)
    given, known = setup.ahead(image)
    return lambda: setup.step(given, label, known)


# --- Tables ---------------------------------------------------------------------------------------


def by_seed(runs: Sequence[Result], key: str) -> dict[int, float]:
    """{seed: mean over data sets} of a number of each run; H of the means of base and new."""
    seeds = dict.fromkeys(run["seed"] for run in runs)
    of = {seed: [run for run in runs if run["seed"] == seed] for seed in seeds}
    if key == "h":
        return {
            seed: harmonic_mean(*(fmean(run[part] for run in own) for part in ("base", "new")))
            for seed, own in of.items()
        }
    return {seed: fmean(run[key] for run in own) for seed, own in of.items()}


def under(runs: Sequence[Result], classes: str, names: Sequence[str]) -> dict[int, float]:
    """{seed: mean accuracy over these corruptions and the data sets}."""
    flat = [
        {"seed": run["seed"], "x": fmean(run["corrupted"][classes][name] for name in names)}
        for run in runs
    ]
    return by_seed(flat, "x")


def stat(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over n − 1."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def table(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A claim's table: titles, then a row for each of its rows."""
    first = next((row for row in result["rows"] if row["control"]), None)
    reference = by_seed(first["runs"], "h") if first else {}
    titles = ["", "parameters", "base", "new", "H", f"H − {first['name']}" if first else "H −"]
    cost, measures = result.get("cost") or {}, result["measures"]
    if cost:
        asked = cost["asked"]
        titles += [f"parameters, {asked['backbone']}", f"ms a step, {asked['classes']} classes"]
    titles += ["cross entropy", "epochs to 95 %"] if "starts" in measures else []
    if "corruptions" in measures:
        titles += ["corrupted, base", "new", "typos, base", "new"]
    lines = [tuple(titles)]
    for row in result["rows"]:
        runs = row["runs"]
        h = by_seed(runs, "h")
        less = [h[seed] - reference[seed] for seed in h if seed in reference]
        line = [row["name"], f"{max(run['parameters'] for run in runs):,}"]
        line += [stat(list(by_seed(runs, key).values())) for key in ("base", "new")]
        line += [stat(list(h.values())), "–" if row is first or not less else stat(less)]
        if cost:
            line.append(f"{cost['parameters'][row['name']]:,}")
            line.append(f"{1000 * cost['seconds'][row['name']]:.0f}")
        line += _learning(runs) if "starts" in measures else []
        if "corruptions" in measures:
            for names in (OF_IMAGES, (TYPOS,)):
                line += [stat(list(under(runs, c, names).values())) for c in ("base", "new")]
        lines.append(tuple(line))
    return lines


def _learning(runs: Sequence[Result]) -> list[str]:
    ends = [run["cross_entropy"] for run in runs if "cross_entropy" in run]
    epochs = [run["epochs_to_95"] for run in runs if run.get("epochs_to_95") is not None]
    return [stat(ends, 4) if ends else "–", stat(epochs, 1) if epochs else "–"]


def spreads(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Standard deviations over all runs of a trainer's several starts."""
    lines = [("all starts of", "runs", "sd of base", "of new", "of H", "of cross entropy")]
    for trainer in dict.fromkeys(row["trainer"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["trainer"] == trainer]
        if len(rows) < 2:
            continue
        runs = [run for row in rows for run in row["runs"]]
        line = [trainer, str(len(runs))]
        for key, digits in (("base", 2), ("new", 2), ("h", 2), ("cross_entropy", 4)):
            values = [run[key] for run in runs if key in run]
            line.append(f"{stdev(values):.{digits}f}" if len(values) > 1 else "–")
        lines.append(tuple(line))
    return lines


def page(everything: dict[str, Any]) -> str:
    """All tables as Markdown."""
    settings = everything["settings"]
    seeds = ", ".join(map(str, settings["seeds"]))
    parts = [
        f"{', '.join(settings['datasets'])}; config {settings['config']}; {settings['shots']} "
        f"shots; seeds {seeds}; {everything['machine']}. Percent, mean ± standard deviation over "
        "seeds; differences are taken seed by seed."
    ]
    for name, result in everything["methods"].items():
        parts.append(f"## {name}\n\nClaim: {result['claim']}.")
        if result["rows"]:
            parts.append(_markdown(table(result)))
        if "starts" in result["measures"] and len(spreads(result)) > 1:
            parts.append(_markdown(spreads(result)))
        parts += [f"Missing: {line}" for line in result["missing"]]
    return "\n\n".join(parts) + "\n"


def _markdown(lines: Sequence[tuple[str, ...]]) -> str:
    return markdown_table([tuple(escape_markdown(cell) for cell in line) for line in lines])

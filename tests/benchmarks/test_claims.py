"""Claims are declared soundly, and measured as they say: on runs that are made up."""

import json
from argparse import Namespace
from statistics import stdev

import pytest
import torch

import trainers
from benchmarks import claims
from benchmarks.claim_tables import Runs, measured, of_cost, page, spreads, stat, table
from dassl.config.severities import CORRUPTIONS, OF_IMAGES
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from experiments.runner import Outcome
from tuning.claims import MEASURES, Claim, Row, declared
from tuning.options import parse_args, setup_cfg

trainers.modules()
DECLARED = declared()
COOP, ZERO = Row("CoOp", "CoOp", {"OPTIM.MAX_EPOCH": "2"}), Row("zero-shot", "ZeroshotCLIP")


def test_what_is_declared():
    assert {"PRE", "LASP", "EPT", "LAMP", "SPT", "IPT", "InfoPrompt", "StablePT"} <= set(DECLARED)
    by_name = {}
    for name, claim in DECLARED.items():
        rows = (*claim.rows, *claim.controls)
        assert claim.controls and {row.trainer for row in claim.rows} == {name}
        assert set(claim.measures) <= set(MEASURES)
        assert len({row.name for row in rows}) == len(rows)
        settings = set()
        for row in rows:
            # One name is one row, in all claims; its options are the trainer's.
            assert by_name.setdefault(row.name, row) == row
            pairs = [word for pair in row.options.items() for word in pair]
            cfg = setup_cfg(parse_args(["--trainer", row.trainer, *pairs]))
            settings.add(f"{row.trainer} {row.library} {cfg.TRAINER}")
        assert len(settings) == len(rows), name


def arguments(tmp_path, *more):
    words = ["--output", str(tmp_path), "--root", str(tmp_path / "data"), *more]
    args = claims.parse_args(words)
    args.output = args.output.resolve()
    return args


def finish(job, accuracy, losses=(), numbers=0, **more):
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "result.json").write_text(json.dumps({"accuracy": accuracy, **more}))
    lines = [{"epoch": i, "losses": {"itm": x}} for i, x in enumerate(losses, 1)]
    if lines:
        (job.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    if numbers:
        file = job.folder / "prompt_learner" / "model.pth.tar-2"
        file.parent.mkdir()
        torch.save({"state_dict": {"a": torch.zeros(numbers), "b": torch.zeros(())}}, file)


def test_a_table_by_hand(tmp_path):
    args = arguments(tmp_path, "--seeds", "1-2")
    claim = Claim("it", (ZERO,), (COOP,), ("starts",))
    runs = [Runs(row, claims.chains_of(row, claim, args)) for row in (ZERO, COOP)]
    assert len(measured(claim, runs)["missing"]) == 2
    numbers = {("CoOp", 1): (60, 40), ("CoOp", 2): (80, 50), ("zero-shot", 1): (50, 50)}
    numbers["zero-shot", 2] = (60, 60)
    for each in runs:
        for (_, seed), chain in each.chains.items():
            base, new = numbers[each.row.name, seed]
            curve = (2.0, 1.0) if each.row is COOP else ()
            finish(chain.jobs[0], base, curve, 9 * (each.row is COOP))
            finish(chain.jobs[1], new)
    result = measured(claim, runs)
    assert not result["missing"] and result["rows"][1]["control"]
    refused = {runs[1].chains["mini_shapes", 2].jobs[1].folder}
    assert measured(claim, runs, refused)["missing"] == ["CoOp: mini_shapes, seed 2"]
    titles, zero, coop = table(result)
    h = [2 * 60 * 40 / 100, 2 * 80 * 50 / 130]
    less = [50 - h[0], 60 - h[1]]
    assert titles[1:7] == ("parameters", "base", "new", "H", "H − CoOp", "cross entropy")
    expected = ("zero-shot", "0", "55.00 ± 7.07", "55.00 ± 7.07", "55.00 ± 7.07", stat(less))
    assert zero == (*expected, "–", "–")
    assert coop[:3] == ("CoOp", "10", "70.00 ± 14.14") and coop[4:6] == (stat(h), "–")
    assert coop[6:] == ("1.0000 ± 0.0000", "2.0 ± 0.0")
    assert stat(less) == f"{sum(less) / 2:.2f} ± {stdev(less):.2f}" and stat([1.0]) == "1.00"
    assert spreads(result) == [spreads(result)[0]]  # neither has several starts
    result["rows"][0]["trainer"] = "CoOp"
    assert spreads(result)[1][:3] == ("CoOp", "4", f"{stdev([50, 60, 60, 80]):.2f}")
    shown = {"settings": vars(args), "machine": "M", "methods": {"X": {**result, "missing": ["m"]}}}
    text = page(shown)
    assert "seeds 1, 2; M." in text and "## X\n\nClaim: it." in text and "Missing: m" in text


def test_corruptions_of_the_same_models(tmp_path):
    args = arguments(tmp_path, "--seeds", "1", "--severity", "2")
    claim = Claim("it", (COOP,), (), ("corruptions",))
    runs = Runs(COOP, claims.chains_of(COOP, claim, args))
    ((_, chain),) = runs.chains.items()
    assert len(chain.jobs) == 2 + 2 * len(CORRUPTIONS)
    for i, job in enumerate(chain.jobs):
        stage = job.folder.relative_to(args.output / "runs").parts[1]
        if i < 2:
            finish(job, 50.0)
            continue
        name, severity, classes = stage.split("_")
        assert severity == "2"
        finish(job, float(i), classes=classes, corruption={"name": name, "severity": 2})
    result = measured(claim, [runs])
    line = table(result)[1]
    n = len(OF_IMAGES)
    # Base and new in turn: 2, 4, … and 3, 5, …; typos come last.
    assert line[6:] == (f"{n + 1:.2f}", f"{n + 2:.2f}", f"{2 + 2 * n:.2f}", f"{3 + 2 * n:.2f}")


def test_libraries_come_first(tmp_path, monkeypatch):
    """A run over the other data sets for each seed; what it learned starts the row's runs."""
    row = Row("tuned", "CoOp", {"TRAINER.COOP.N_CTX": "4"}, library=True)
    claim = Claim("it", (row,), (ZERO,))
    monkeypatch.setattr(claims, "declared", lambda: {"CoOp": claim})
    asked = []

    def library(row, args, dataset, seed):
        args = Namespace(**{**vars(args), "library": "mini"})
        return original(row, args, dataset, seed)

    def run_local(chains, settings, slots, report):
        asked.append([job for chain in chains for job in chain.jobs])
        for chain in chains:
            done = []
            for job in chain.jobs:
                if "seed2" in str(job.folder) and "libraries/" in str(job.folder):
                    done.append(Outcome(job, "failed", reason="made up"))
                    continue
                finish(job, 50.0, numbers=0 if "test_new" in str(job.folder) else 3)
                done.append(Outcome(job, "done", accuracy=50.0))
            report(chain, done)

    original = claims.library_of
    monkeypatch.setattr(claims, "library_of", library)
    monkeypatch.setattr(claims, "run_local", run_local)
    monkeypatch.chdir(tmp_path)
    status = claims.main(["--output", str(tmp_path / "out"), "--seeds", "1-2"])
    assert status == 1  # seed 2 has no library
    first, second = asked
    assert len(first) == 2
    cfg = setup_cfg(parse_args(list(first[0].arguments)))
    assert cfg.DATASET.NAME == "MiniFabrics" and cfg.TRAINER.COOP.N_CTX == 4
    assert tuple(cfg.DATASET.FURTHER) == tuple(
        f"configs/datasets/mini_{name}.yaml" for name in ("scenes", "badges")
    )
    started = [job for job in second if "from_libraries" in str(job.folder)]
    assert len(started) == 2 and len(second) == 6
    file = str(first[0].folder / "prompt_learner" / "model.pth.tar-2")
    assert all("MODEL.INIT_WEIGHTS" in job.arguments and file in job.arguments for job in started)
    written = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert written["methods"]["CoOp"]["missing"] == ["tuned: mini_shapes, seed 2"]
    assert [row["name"] for row in written["methods"]["CoOp"]["rows"]] == ["zero-shot"]
    assert "zero-shot" in (tmp_path / "out" / "claims.md").read_text()
    with pytest.raises(UserError, match="tuned needs data sets beside mini_shapes"):
        original(row, arguments(tmp_path, "--sources", "mini_shapes"), "mini_shapes", 1)


def test_cost(tmp_path):
    words = ("--backbone", "tiny", "--classes", "3", "--repeats", "1")
    args = arguments(tmp_path, *words)
    rows = (Row("EPT", "EPT"), Row("16", "CoOp"), Row("4", "CoOp", {"TRAINER.COOP.N_CTX": "4"}))
    cost = of_cost(rows, args)
    assert cost["parameters"]["16"] == 16 * 64 == 4 * cost["parameters"]["4"]
    assert all(cost["seconds"][row.name] > 0 for row in rows)
    assert of_cost(rows, args) == cost  # as it was measured
    assert of_cost(rows[:2], args)["asked"]["rows"].keys() == {"EPT", "16"}
    args.read_only, args.output = True, tmp_path / "nothing"
    assert of_cost(rows, args) == {}


@pytest.mark.parametrize(
    "words,message",
    [
        ("--methods Ept", "Ept declares no claim .did you mean 'EPT'"),
        ("--opts OPTIM.LR", "come in pairs"),
        ("--datasets mini_shapes {here}", "mini_shapes is in configs/datasets already"),
    ],
)
def test_mistakes(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, *words.format(here=f"mini_shapes={tmp_path}").split())


def test_twins_claim_nothing():
    assert not any(name.startswith("DePT_") for name in DECLARED)
    assert TRAINER_REGISTRY.get("DePT_EPT").claim is TRAINER_REGISTRY.get("EPT").claim

"""Differences between methods: the test by brute force, which pairs it takes, what it says."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
from scipy import stats

from experiments.results import pairing
from experiments.results.all_tables import make_tables
from experiments.results.compare import comparisons
from experiments.results.pairing import compared, holm, sign_flip_p
from experiments.results.rendering import as_text
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from experiments.results.sweeps import ABLATION, LAMBDA, add_sweeps
from experiments.results.tables import Layout
from tests.experiments.fake_runs import add_pair, add_run, identity
from tests.experiments.results.test_parse_results import parse

# --- The test -----------------------------------------------------------------------------------


def brute_force(values: list[float]) -> float:
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    return sum(s >= abs(sum(values)) - 1e-9 for s in sums) / len(sums)


@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_p_is_that_of_all_sign_patterns(n):
    values = np.random.default_rng(n).normal(0.5, 1, n).round(1)  # rounded: there are ties
    assert sign_flip_p(values) == pytest.approx(brute_force(list(values)))
    assert sign_flip_p(-values) == sign_flip_p(values)


def test_p_by_hand():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 2 / 8  # all of one sign
    assert sign_flip_p(np.array([0.1, 0.2, -0.3])) == 1  # 0.1 + 0.2 isn't 0.3 in floats
    assert sign_flip_p(np.zeros(4)) == 1


def test_p_of_many_pairs_is_near_the_exact_one_and_the_same_each_time(monkeypatch):
    values = np.random.default_rng(0).normal(0.4, 1, 14)
    exact = sign_flip_p(values)
    monkeypatch.setattr(pairing, "EXACT", 5)
    sampled = sign_flip_p(values)
    assert sampled == sign_flip_p(values) != exact
    assert abs(sampled - exact) < 5 * np.sqrt(exact * (1 - exact) / pairing.SAMPLED)
    assert sign_flip_p(np.full(40, 1.0)) == 1 / (pairing.SAMPLED + 1)  # never 0


def test_the_interval_is_students():
    values = [1.0, 2.5, -0.5, 3.0]
    found = compared(values)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.mean, found.pairs) == (1.5, 4)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


# --- Which pairs --------------------------------------------------------------------------------


def add(root, trainer, dataset="dtd", seeds=(1, 2, 3), base=80.0, new=60.0, **options):
    for seed in seeds:
        add_pair(root, dataset, base + seed, new, trainer=trainer, seed=seed, **options)


def found_in(root, against=""):
    found = comparisons(summarize(load_scores(root)[0]), against)
    return {(c.row.trainer, c.other.trainer, c.metric): c for c in found}


def test_a_method_with_dept_less_itself_over_seeds_and_data_sets(tmp_path):
    for dataset, gain in (("dtd", 1), ("pets", 3)):
        add(tmp_path, "CoOp", dataset)
        add(tmp_path, "DePT_CoOp", dataset, base=80 + gain, new=61)
    found = found_in(tmp_path)
    assert set(found) == {("DePT_CoOp", "CoOp", metric) for metric in ("base", "new", "h")}
    base = found["DePT_CoOp", "CoOp", "base"]
    assert (base.difference.mean, base.difference.pairs) == (2, 6)
    assert base.difference.p == 2 / 64 and base.datasets == ("dtd", "pets")
    pairs = [
        2 * (80 + s + g) * 61 / (141 + s + g) - 2 * (80 + s) * 60 / (140 + s)
        for g in (1, 3)
        for s in (1, 2, 3)
    ]
    assert found["DePT_CoOp", "CoOp", "h"].difference.mean == pytest.approx(np.mean(pairs))


def test_fewer_than_three_common_seeds_say_nothing(tmp_path):
    add(tmp_path, "CoOp", seeds=(1, 2, 3))
    add(tmp_path, "DePT_CoOp", seeds=(2, 3, 4))
    assert found_in(tmp_path) == {}
    assert "Differences" not in as_text(make_tables(summarize(load_scores(tmp_path)[0])))
    add(tmp_path, "CoOp", "pets")
    add(tmp_path, "DePT_CoOp", "pets")
    base = found_in(tmp_path)["DePT_CoOp", "CoOp", "base"]
    assert (base.datasets, base.without, base.difference.pairs) == (("pets",), ("dtd",), 3)
    text = as_text(make_tables(summarize(load_scores(tmp_path)[0])))
    assert "DePT_CoOp less CoOp: without dtd (fewer than 3 seeds" in text


def test_other_images_are_no_pair(tmp_path):
    add(tmp_path, "CoOp", identity=identity())
    add(tmp_path, "DePT_CoOp", identity=identity({"test": "other images"}))
    assert found_in(tmp_path) == {}


def test_against_a_named_method(tmp_path):
    for trainer, base in (("CoOp", 80), ("MaPLe", 82), ("DePT_CoOp", 85)):
        add(tmp_path, trainer, base=base)
    found = found_in(tmp_path, "MaPLe")
    assert {key[:2] for key in found} == {("CoOp", "MaPLe"), ("DePT_CoOp", "MaPLe")}
    assert found["CoOp", "MaPLe", "base"].difference.mean == -2
    answer = parse(tmp_path, "--against", "MaPLE")
    assert answer.returncode == 2 and "did you mean 'MaPLe'" in answer.stderr


def test_another_backbone_is_no_reference(tmp_path):
    add(tmp_path, "CoOp", backbone_sha256="b16")
    add(tmp_path, "MaPLe", backbone_sha256="b32")
    assert found_in(tmp_path, "MaPLe") == {}


def test_the_table_says_which_test_of_how_many_pairs(tmp_path):
    add(tmp_path, "CoOp")
    add(tmp_path, "DePT_CoOp", base=82)
    tables = make_tables(summarize(load_scores(tmp_path)[0]))
    (table,) = [t for t in tables if t.title.startswith("Differences")]
    assert table.title == "Differences, base to new, 16 shots"
    lines = as_text([table]).splitlines()
    shown = [" ".join(line.split()) for line in lines]
    assert shown[2] == "Method Less Of Difference 95 % interval p Holm Pairs"
    assert shown[4] == "DePT_CoOp CoOp Base +2.00 +2.00 to +2.00 0.250 0.750 3"
    assert lines[5].split()[-4:] == ["+0.00", "1.000", "1.000", "3"]
    notes = "\n".join(lines[7:])
    assert "sign-flip permutation test" in notes and "exact" in notes and "Student's t" in notes
    assert "corrected for the 3 comparisons" in notes
    assert max(map(len, lines)) <= 84


def test_lines_of_sweeps_are_compared_with_the_usual_one(tmp_path):
    dept = {"trainer": "DePT_CoOp", "new": 60.0}
    add(tmp_path, base=82, **dept)
    add(tmp_path, base=81, config=f"tiny@{LAMBDA}=0.3", **dept)
    add(tmp_path, base=79, config="tiny@TRAINER.DEPT.ROWS=image", **dept)
    summary = summarize(load_scores(tmp_path)[0])
    add_sweeps(summary)
    found = {
        (c.sweep, c.label): c.difference.mean for c in comparisons(summary) if c.metric == "base"
    }
    assert found == {("lambda", "λ 0.3"): -1, ("ablation", ABLATION[4].label): -3}
    titles = [t.title for t in make_tables(summary) if t.title.startswith("Differences")]
    assert titles == [
        "Differences, ablation, 16 shots",
        "Differences, weight of the CAT loss (λ), 16 shots",
    ]


# --- What depends on no seed --------------------------------------------------------------------


def test_one_run_without_a_seed_pairs_with_every_seed(tmp_path):
    add(tmp_path, "CoOp")
    add_pair(tmp_path, "dtd", 79, 60, trainer="ZeroshotCLIP", seeded=False)
    base = found_in(tmp_path, "ZeroshotCLIP")["CoOp", "ZeroshotCLIP", "base"]
    assert (base.difference.mean, base.difference.pairs) == (3, 3)
    answer = parse(tmp_path, "--seeds", "1-3")
    assert answer.stdout.count("1 run, no seed") == 1 and "missing" not in answer.stderr
    later = parse(tmp_path, "--seeds", "2-3")  # its run counts whatever the seeds
    assert "1 run, no seed" in later.stdout


def test_of_repetitions_of_one_number_one_counts(tmp_path):
    for seed in (1, 2, 3):
        add_pair(tmp_path, "dtd", 79, 60, trainer="ZeroshotCLIP", seeded=False, seed=seed)
    answer = parse(tmp_path)
    assert "79.00  60.00" in answer.stdout and "1 run, no seed" in answer.stdout
    add_pair(tmp_path, "dtd", 79.5, 60, trainer="ZeroshotCLIP", seeded=False, seed=4)
    assert "79.12 ± 0.25" in parse(tmp_path).stdout  # they aren't one number: all are shown


# --- Single values ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_every_value_in_long_form(tmp_path, kind):
    options = {"versions": {"dept": "1.0.0", "torch": "2.6.0"}, "backbone": "ViT-B/16"}
    out = tmp_path / "out"
    add(out, "CoOp", seeds=(1, 2), ece=3.0, identity=identity(), **options)
    add_pair(out, "dtd", 79, 60, trainer="ZeroshotCLIP", seeded=False)
    add_run(out, "base2new/train_base/pets", 50)
    file = tmp_path / f"values.{kind}"
    assert parse(out, "--per-seed", file).returncode == 0
    lines = list(csv.DictReader(file.open())) if kind == "csv" else json.loads(file.read_text())
    mine = [line for line in lines if line["trainer"] == "CoOp" and line["dataset"] == "dtd"]
    found = {
        (line["classes"], line["metric"], str(line["seed"])): float(line["value"]) for line in mine
    }
    assert found == {
        **{("base", "accuracy", str(s)): 80 + s for s in (1, 2)},
        **{("new", "accuracy", str(s)): 60 for s in (1, 2)},
        **{(part, "ece", str(s)): 3 for part in ("base", "new") for s in (1, 2)},
        **{
            ("base and new", "h", str(s)): pytest.approx(2 * (80 + s) * 60 / (140 + s))
            for s in (1, 2)
        },
    }
    one = mine[0]
    assert (one["dept"], one["torch"], one["backbone"]) == ("1.0.0", "2.6.0", "ViT-B/16")
    assert len(one["config_sha256"]) == 16 and len({m["config_sha256"] for m in mine}) == 1
    zero = [line for line in lines if line["trainer"] == "ZeroshotCLIP"]
    assert {line["seed"] for line in zero} == ({""} if kind == "csv" else {None})
    assert not any(line["dataset"] == "pets" and line["metric"] == "h" for line in lines)


def test_another_kind_of_file_is_refused(tmp_path):
    add_pair(tmp_path, "dtd", 80, 60)
    answer = parse(tmp_path, "--per-seed", tmp_path / "x.txt")
    assert answer.returncode == 2 and "ends in .csv or .json" in answer.stderr


def test_json_has_differences_and_values(tmp_path):
    add(tmp_path, "CoOp")
    add(tmp_path, "DePT_CoOp", base=82)
    content = json.loads(parse(tmp_path, "--format", "json").stdout)
    first = content["differences"][0]
    assert (first["trainer"], first["against"], first["metric"]) == ("DePT_CoOp", "CoOp", "base")
    assert (first["mean"], first["pairs"], first["p"]) == (2, 3, 0.25)
    assert len(content["values"]) == 2 * 3 * 3  # base, new and h
    against = parse(tmp_path, "--format", "json", "--against", "DePT_CoOp").stdout
    assert json.loads(against)["differences"][0]["trainer"] == "CoOp"


def test_layout_names_the_reference(tmp_path):
    add(tmp_path, "CoOp")
    add(tmp_path, "MaPLe")
    tables = make_tables(summarize(load_scores(tmp_path)[0]), Layout(against="CoOp"))
    assert tables[-1].lines[0].keys == ["MaPLe", "CoOp", "Base"]

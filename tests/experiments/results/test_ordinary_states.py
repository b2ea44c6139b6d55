"""No ordinary state of an output folder loses a table, a picture or the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.results import plots
from experiments.results.all_tables import make_tables
from experiments.results.folders import config_label
from experiments.results.rendering import as_text
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from experiments.results.sweeps import ABLATION, LAMBDA, add_sweeps
from tests.experiments.fake_runs import add_pair, add_run, identity
from tests.experiments.results.test_parse_results import parse

CWT, LR_MULT = "TRAINER.DEPT.CWT", "TRAINER.DEPT.LR_MULT"
USUAL = {
    LAMBDA: 0.7,
    LR_MULT: 6.5,
    CWT: "separate",
    **{"TRAINER.DEPT.FUSION": "logits", "TRAINER.DEPT.HEAD": "linear", "TRAINER.DEPT.ROWS": "both"},
}


def add(root: Path, trainer: str, base: float, dataset: str = "dtd", seed: int = 1, **changes):
    """Add a pair of runs that say what they ran with, in the folder that a protocol gives them."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    settings = {**USUAL, **named} if trainer.startswith("DePT_") else named
    settings = {k: v for k, v in settings.items() if trainer != "CoOp" or "DEPT" not in k}
    mine = [str(x) for k, v in named.items() if k in settings for x in (k, v)]
    add_pair(
        root,
        dataset,
        base,
        60,
        trainer=trainer,
        seed=seed,
        config=config_label("tiny", mine),
        identity=identity(**settings, TRAINER__NAME=trainer),
    )


def summary_of(root: Path):
    summary = summarize(load_scores(root)[0])
    add_sweeps(summary)
    return summary


def bases(records) -> list[float]:
    return [record.metrics["base"].mean for record in records]


# --- Sweeps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"TRAINER.COOP.CTX_INIT": "a photo of a"},  # no name of a folder
        {"OPTIM.LR": 0.1, "INPUT.TRANSFORMS": "x" * 200},  # too long for one
        {CWT: "shared"},  # one of the ablation's own
    ],
)
def test_the_sweep_of_lambda_under_an_option(tmp_path, option):
    for value in (0.3, 0.5, 0.7):
        changes = {} if value == 0.7 else {LAMBDA: value}
        add(tmp_path, "DePT_CoOp", 80 + value, **option, **changes)
    found = summary_of(tmp_path).of("lambda")
    assert [r.dataset for r in found] == ["0.3", "0.5", "0.7"]
    assert bases(found) == [80.3, 80.5, 80.7]
    text = parse(tmp_path, "--html", tmp_path / "report.html")
    assert text.returncode == 0 and "Weight of the CAT loss" in text.stdout


@pytest.mark.parametrize("option", [{LR_MULT: 5}, {LAMBDA: 0.5}, {"OPTIM.LR": 0.1}])
def test_the_ablation_under_an_option_keeps_all_its_lines(tmp_path, option):
    for i, setting in enumerate(ABLATION):
        add(tmp_path, "CoOp" if setting.bare else "DePT_CoOp", 80 + i, **option, **setting.changes)
    found = summary_of(tmp_path).of("ablation")
    assert [r.dataset for r in found] == [setting.label for setting in ABLATION]
    assert bases(found) == [80, 81, 82, 83, 84, 85]
    (table, *_) = make_tables(summary_of(tmp_path))
    assert [line.keys[1].split()[0] for line in table.lines] == ["CoOp", "DePT_CoOp"]


def test_the_ablation_around_one_of_its_own_settings(tmp_path):
    for i, setting in enumerate(s for s in ABLATION if s.name != "shared_cwt" and not s.bare):
        add(tmp_path, "DePT_CoOp", 80 + i, **{CWT: "shared", **setting.changes})
    found = summary_of(tmp_path).of("ablation")
    left = [s.label for s in ABLATION if s.name != "shared_cwt" and not s.bare]
    assert [r.dataset for r in found] == left and bases(found) == [80, 81, 82, 83]
    table = make_tables(summary_of(tmp_path))[0]  # the one of base to new has the usual line
    assert [line.cells["base"].mean for line in table.lines] == [83]


def test_two_sweeps_side_by_side_are_told_apart(tmp_path):
    for value, rate in ((0.3, 0.1), (0.7, 0.1), (0.3, 0.2), (0.7, 0.2)):
        changes = {} if value == 0.7 else {LAMBDA: value}
        add(tmp_path, "DePT_CoOp", 80 + 10 * rate, OPTIM__LR=rate, **changes)
    summary = summary_of(tmp_path)
    (table,) = [t for t in make_tables(summary) if "λ" in t.title]
    assert [line.keys[:2] for line in table.lines] == [
        [value, f"DePT_CoOp tiny@OPTIM.LR={rate}"]
        for rate in (0.1, 0.2)
        for value in ("0.3", "0.7")
    ]
    axis = plots.lambda_curves(summary).figure().axes[0]
    assert len(axis.lines) == 6  # base, new and H of either


def test_names_alone_say_it_where_there_are_no_settings(tmp_path):
    """Odd signs in a changed setting leave a hash at a folder's end, behind λ."""
    for value in ("0.3", "0.7"):
        changes = ["TRAINER.COOP.CTX_INIT", "a photo of a", LAMBDA, value]
        config = config_label("tiny", changes)
        add_pair(tmp_path, "dtd", 80 + float(value), 60, trainer="DePT_CoOp", config=config)
    for file in tmp_path.rglob("config.yaml"):
        file.unlink()
    found = summary_of(tmp_path).of("lambda")
    assert [(r.dataset, r.metrics["base"].mean) for r in found] == [("0.3", 80.3), ("0.7", 80.7)]


def test_a_changed_lambda_alone_is_no_sweep(tmp_path):
    add(tmp_path, "CoOp", 78)
    add(tmp_path, "DePT_CoOp", 80, **{LAMBDA: 0.5})
    text = as_text(make_tables(summary_of(tmp_path)))
    assert "λ" not in text and "DePT_CoOp" in text.split("\n\n")[0]


def test_a_half_finished_sweep(tmp_path):
    for value in (0.1, 0.3, 0.7):
        changes = {} if value == 0.7 else {LAMBDA: value}
        add(tmp_path, "DePT_CoOp", 80 + value, **changes)
        if value != 0.3:
            add(tmp_path, "DePT_CoOp", 60, "eurosat", **changes)
    settings = {**USUAL, LAMBDA: 0.9, "TRAINER.NAME": "DePT_CoOp"}
    options = {"config": f"tiny@{LAMBDA}=0.9", "trainer": "DePT_CoOp"}
    add_run(tmp_path, "base2new/train_base/dtd", 1, identity=identity(**settings), **options)
    summary = summary_of(tmp_path)
    found = summary.of("lambda")
    assert [(r.dataset, r.source) for r in found] == [(v, "dtd") for v in ("0.1", "0.3", "0.7")]
    (remark,) = [line for line in summary.remarks if line.startswith("lambda")]
    assert "without 0.9" in remark and remark.endswith("no dtd yet")
    assert any("0.9" in line and "new classes" in line for line in summary.missing)


# --- Rows that are refused, missing, alone ------------------------------------------------------


def test_a_refused_row_takes_no_picture_and_no_page_along(tmp_path):
    out = tmp_path / "out"
    classes = [{"classname": "a", "accuracy": 1.0}]
    for seed, rate in ((1, 0.1), (2, 0.2)):
        add_pair(out, "dtd", 80, 60, trainer="CoOp", seed=seed, lr=rate, per_class=classes)
    add_pair(out, "dtd", 82, 61, trainer="DePT_CoOp", per_class=classes)
    for folder in out.rglob("seed*"):
        (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 1.0}\n')
    page = tmp_path / "report.html"
    answer = parse(out, "--html", page, "--plots", tmp_path, "--plot", tmp_path / "x.png")
    assert answer.returncode == 2 and "refused base_to_new: CoOp" in answer.stderr
    assert "DePT_CoOp" in answer.stdout
    assert "Refused" in page.read_text() and "2 results" in page.read_text()


def test_a_failed_seed_and_a_method_with_one(tmp_path):
    for seed in (1, 2, 3):
        add_pair(tmp_path, "dtd", 80 + seed, 60, seed=seed)
    for stage in ("train_base", "test_new"):
        folder = tmp_path / f"base2new/{stage}/dtd/shots_16/CoOp/tiny/seed3"
        (folder / "result.json").unlink()
        (folder / "log.txt").write_text("epoch [1/10]")
    add_pair(tmp_path, "dtd", 90, 60, trainer="DePT_CoOp", seed=2)
    answer = parse(tmp_path, "--html", tmp_path / "report.html")
    assert answer.returncode == 0 and "81.50 ± 0.71" in answer.stdout
    assert answer.stderr.count("unfinished") == 2
    assert "DePT_CoOp tiny, 16 shots: dtd, base classes, seed 1" not in answer.stderr


def test_what_is_registered_no_more(tmp_path):
    add(tmp_path, "CoOp", 80, "a_set_of_before")
    add(tmp_path, "AMethodOfBefore", 80, "a_set_of_before")
    answer = parse(tmp_path, "--html", tmp_path / "report.html")
    assert answer.returncode == 0 and answer.stdout.count("80.00") == 2


def test_two_versions_of_the_code(tmp_path):
    """One has a setting more, at what it was before it could be set."""
    add_pair(tmp_path, "dtd", 80, 60, seed=1, identity=identity(), versions={"dept": "1.0.0"})
    newer = {"identity": identity(TRAINER__COOP__CSC=False), "versions": {"dept": "9.0.0"}}
    add_pair(tmp_path, "dtd", 82, 60, seed=2, **newer)
    answer = parse(tmp_path, "--html", tmp_path / "report.html")
    assert answer.returncode == 0 and "81.00 ± 1.41" in answer.stdout


# --- Pictures -----------------------------------------------------------------------------------


@pytest.fixture
def three_shots(tmp_path):
    for shots in (1, 4, 16):
        for trainer, gain in (("CoOp", 0), ("DePT_CoOp", 5)):
            classes = [{"classname": "a", "accuracy": 50.0 + shots + gain}]
            options = {"trainer": trainer, "shots": shots, "per_class": classes}
            add_pair(tmp_path, "dtd", 60 + shots + gain, 50, **options)
    for folder in tmp_path.rglob("seed*"):
        (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 1.0}\n')
    return summary_of(tmp_path)


def test_every_number_of_shots_has_its_pictures(three_shots, tmp_path):
    files = {file.stem for file in plots.save_all(three_shots, tmp_path / "pictures")}
    several = ("base_new", "datasets", "curves", "classes")
    assert files == {"few_shot"} | {
        name + suffix for name in several for suffix in ("", "_4_shots", "_1_shot")
    }
    for shots, told in ((16, "16 shots"), (4, "4 shots"), (1, "1 shot")):
        (axis,) = plots.base_new_arrows(three_shots, shots).figure().axes
        assert axis.get_title() == f"dtd, {told}"
        assert [bar.lines[0].get_xdata()[0] for bar in axis.containers] == [60 + shots, 65 + shots]
        assert {
            axis.get_title() for axis in plots.class_gains(three_shots, shots).figure().axes
        } == {f"DePT_CoOp, dtd, {part}, {told}" for part in ("base", "new")}


def test_one_picture_says_of_which_shots_it_is(three_shots, tmp_path):
    answer = parse(tmp_path, "--plot", tmp_path / "x.png")
    assert "x.png is of 16 shots; 4, 1 shots have pictures of their own" in answer.stderr


def test_schedules_in_one_folder_are_told_apart_in_pictures(tmp_path):
    for config, base in (("ep10", 80), ("ep50", 70)):
        add_pair(tmp_path, "dtd", base, 60, config=config)
    add_pair(tmp_path, "dtd", 85, 60, config="ep10", trainer="DePT_CoOp")
    (axis,) = plots.base_new_arrows(summary_of(tmp_path)).figure().axes
    assert {bar.get_label() for bar in axis.containers} == {"CoOp ep10", "CoOp ep50", "DePT_CoOp"}
    arrows = [text for text in axis.texts if hasattr(text, "arrow_patch")]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == [((80, 60), (85, 60))]


def test_a_setting_of_depts_own_keeps_the_arrow(tmp_path):
    add(tmp_path, "CoOp", 80)
    add(tmp_path, "DePT_CoOp", 85, **{LR_MULT: 5})
    summary = summary_of(tmp_path)
    (axis,) = plots.base_new_arrows(summary).figure().axes
    assert len([text for text in axis.texts if hasattr(text, "arrow_patch")]) == 1
    bare, wrapped = (bar.lines[0] for bar in axis.containers)
    assert bare.get_color() == wrapped.get_color()

"""scripts/parse_results.py on small output trees."""

from __future__ import annotations

import csv
import io
import json
import statistics
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from PIL import Image

from dassl.config import MACHINE_KEYS
from experiments.results import command as parse_results
from experiments.results import published
from experiments.results.folders import Place, changed_settings, config_label, read_place
from experiments.results.records import AVERAGE
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from experiments.results.sweeps import ABLATION, LAMBDA, add_sweeps
from tests.experiments.fake_runs import add_pair, add_run, original_log


@dataclass
class Answer:
    returncode: int
    stdout: str
    stderr: str


def parse(folder: Path, *options: object) -> Answer:
    """Run the script's main in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["parse_results.py", str(folder), *map(str, options)]
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            status = parse_results.main()
        except SystemExit as stop:
            status = stop.code
    return Answer(status, out.getvalue(), err.getvalue())


def summary_of(folder: Path, **wanted):
    summary = summarize(load_scores(folder)[0], **wanted)
    add_sweeps(summary)
    return summary


def only(records, **keys):
    found = [r for r in records if all(getattr(r, k) == v for k, v in keys.items())]
    assert len(found) == 1, found
    return found[0]


def test_base_new_and_h_per_data_set_and_on_average(tmp_path):
    accuracies = {"pets": [(80, 60), (90, 70)], "cars": [(50, 40), (70, 44)]}
    for dataset, pairs in accuracies.items():
        for seed, (base, new) in enumerate(pairs, start=1):
            add_pair(tmp_path, dataset, base, new, seed=seed)
    records = summary_of(tmp_path).records
    pets = only(records, dataset="pets").metrics
    assert pets["base"].mean == 85 and pets["base"].std == pytest.approx(statistics.stdev([80, 90]))
    assert pets["h"].mean == pytest.approx(2 * 85 * 65 / 150)
    paired = [2 * 80 * 60 / 140, 2 * 90 * 70 / 160]
    assert pets["h"].std == pytest.approx(statistics.stdev(paired))

    average = only(records, dataset=AVERAGE).metrics
    assert average["base"].mean == 72.5 and average["new"].mean == 53.5
    assert average["h"].mean == pytest.approx(2 * 72.5 * 53.5 / 126)  # of the averaged accuracies
    assert average["base"].std == pytest.approx(statistics.stdev([65, 80]))


def test_any_seeds_and_the_missing_ones_are_named(tmp_path):
    for seed in (4, 7):
        add_pair(tmp_path, "pets", 80, 60, seed=seed)
    add_run(tmp_path, "base2new/train_base/cars", 50, seed=4)
    add_run(tmp_path, "base2new/train_base/cars", 50, seed=7)
    summary = summary_of(tmp_path)
    assert only(summary.records, dataset="pets").metrics["base"].seeds == (4, 7)
    assert [line.partition(": CoOp tiny, 16 shots: ")[2] for line in summary.missing] == [
        "cars, new classes, seeds 4, 7"
    ]
    answer = parse(tmp_path)
    assert answer.returncode == 0 and "missing: " in answer.stderr and "missing" in answer.stdout
    wanted = parse(tmp_path, "--seeds", "4", "8", "--datasets", "pets")
    assert "pets, new classes, seed 8" in wanted.stderr and "cars" not in wanted.stdout


def test_a_run_without_a_result_is_named(tmp_path):
    add_pair(tmp_path, "pets", 80, 60)
    folder = add_run(tmp_path, "base2new/train_base/pets", 80, seed=2)
    (folder / "result.json").unlink()
    (folder / "log.txt").write_text("epoch [1/10]")
    answer = parse(tmp_path)
    assert f"missing: unfinished: {folder}" in answer.stderr


def test_mixed_configurations_in_a_row_are_refused_and_other_rows_shown(tmp_path):
    add_pair(tmp_path, "pets", 80, 60, seed=1)
    add_pair(tmp_path, "pets", 90, 70, seed=2, lr=0.1)
    add_pair(tmp_path, "pets", 85, 65, trainer="DePT_CoOp")
    answer = parse(tmp_path)
    assert answer.returncode == 2
    assert "error: refused" in answer.stderr and "OPTIM.LR is 0.002" in answer.stderr
    methods = [line.split()[1] for line in answer.stdout.splitlines() if line.startswith("pets")]
    assert methods == ["DePT_CoOp"]


@pytest.mark.parametrize("key", MACHINE_KEYS)
def test_settings_of_the_machine_may_differ_in_a_row(tmp_path, key):
    for seed in (1, 2):
        add_pair(tmp_path, "pets", 80, 60, seed=seed)
        for path in tmp_path.rglob(f"seed{seed}/config.yaml"):
            config = yaml.safe_load(path.read_text())
            *nodes, name = key.split(".")
            node = config
            for part in nodes:
                node = node.setdefault(part, {})
            node[name] = seed
            path.write_text(yaml.safe_dump(config))
    answer = parse(tmp_path)
    assert answer.returncode == 0 and "80.00 ± 0.00" in answer.stdout and "1,2" in answer.stdout


def test_two_results_for_one_run_are_refused(tmp_path):
    add_pair(tmp_path / "a", "pets", 80, 60)
    add_pair(tmp_path / "b", "pets", 80, 60)
    assert "two results" in parse(tmp_path).stderr


def test_published_numbers_and_gaps(tmp_path):
    for dataset in published.datasets("base_to_new"):
        add_pair(tmp_path, dataset, 80, 70)
    records = summary_of(tmp_path).records
    average = only(records, dataset=AVERAGE)
    assert average.published["base"] == 81.50 and average.published["new"] == 69.77
    rows = list(csv.DictReader(io.StringIO(parse(tmp_path, "--format", "csv").stdout)))
    row = next(row for row in rows if row["dataset"] == "caltech101")
    assert float(row["published_base"]) == 98.17
    assert float(row["gap_base"]) == pytest.approx(80 - 98.17)
    text = parse(tmp_path).stdout
    assert "98.17" in text and "-18.17" in text


def test_the_papers_few_shot_averages(tmp_path):
    for dataset in published.datasets("base_to_new"):
        for shots in (4, 2, 16):
            add_pair(tmp_path, dataset, 80, 70, shots=shots, trainer="DePT_CoOp")
    records = summary_of(tmp_path).records
    averages = {r.shots: r.published.get("base") for r in records if r.dataset == AVERAGE}
    assert averages == {2: None, 4: 78.94, 16: 83.66}


def test_another_backbone_or_setting_is_not_compared_with_the_paper(tmp_path):
    folder = add_run(tmp_path, "base2new/train_base/dtd", 80)
    add_run(tmp_path, "base2new/train_base/dtd", 80, config="tiny@OPTIM.LR=1")
    assert [bool(r.published) for r in summary_of(tmp_path).records] == [True, False]
    (folder / "config.yaml").write_text("MODEL: {BACKBONE: {NAME: ViT-B/32}}")
    assert [bool(r.published) for r in summary_of(tmp_path).records] == [False, False]
    (folder / "config.yaml").write_text("MODEL: {BACKBONE: {NAME: /models/ViT-B-16.pt}}")
    assert [bool(r.published) for r in summary_of(tmp_path).records] == [True, False]


def test_an_average_over_other_data_sets_has_no_published_number(tmp_path):
    for dataset in ("caltech101", "dtd"):
        add_pair(tmp_path, dataset, 80, 70)
    records = summary_of(tmp_path).records
    assert only(records, dataset="dtd").published and not only(records, dataset=AVERAGE).published


@pytest.mark.parametrize("seed", [1, 2])
def test_transfer_tables_have_the_source_and_average_the_targets(tmp_path, seed):
    add_run(tmp_path, "all_classes/train_all/world", 90, seed=seed)
    for target, accuracy in (("east", 50), ("west", 70)):
        add_run(tmp_path, f"cross_dataset/from_world/{target}", accuracy, seed=seed)
    summary = summary_of(tmp_path)
    cross = summary.of("cross_dataset")
    assert [r.dataset for r in cross] == ["world", "east", "west", AVERAGE]
    assert cross[-1].metrics["accuracy"].mean == 60
    assert summary.missing == []
    header = parse(tmp_path).stdout.splitlines()[2].split()
    assert header == ["Method", "world", "east", "west", "average", "Seeds"]


def test_few_shot_lambda_and_ablation_tables(tmp_path):
    dept = {"trainer": "DePT_CoOp"}
    add_pair(tmp_path, "pets", 80, 60, **dept)
    add_pair(tmp_path, "pets", 70, 61, shots=4, **dept)
    add_pair(tmp_path, "pets", 81, 62, config=f"tiny@{LAMBDA}=0.3", **dept)
    add_pair(tmp_path, "pets", 77, 59, config="tiny@TRAINER.DEPT.CWT=shared", **dept)
    add_pair(tmp_path, "pets", 75, 58)
    summary = summary_of(tmp_path)
    assert [(r.dataset, r.metrics["base"].mean) for r in summary.of("lambda")] == [
        ("0.3", 81),
        ("0.7", 80),
    ]
    assert [r.metrics["base"].mean for r in summary.of("ablation")] == [75, 77, 80]
    assert summary.of("ablation")[-1].dataset == ABLATION[-1].label
    assert not [line for line in summary.missing if "@" in line]
    assert "Few-shot learning" in parse(tmp_path).stdout


def test_sweeps_around_another_changed_setting(tmp_path):
    for changes, accuracy in (
        ("OPTIM.MAX_EPOCH=1", 80),
        (f"OPTIM.MAX_EPOCH=1,{LAMBDA}=0.5", 78),
        ("OPTIM.MAX_EPOCH=1,TRAINER.DEPT.ROWS=image", 77),
        (f"{LAMBDA}=0.5,TRAINER.DEPT.ROWS=image", 76),  # in neither sweep: a row of its own
    ):
        add_pair(tmp_path, "dtd", accuracy, 60, trainer="DePT_CoOp", config=f"mini@{changes}")
    summary = summary_of(tmp_path)
    assert [r.metrics["base"].mean for r in summary.of("lambda")] == [78, 80]
    assert [r.metrics["base"].mean for r in summary.of("ablation")] == [77, 80]
    printed = parse(tmp_path).stdout
    assert all(f"{accuracy}.00" in printed for accuracy in (76, 77, 78, 80))


def test_only_the_papers_setting_is_compared_with_its_sweeps(tmp_path):
    for name in published.datasets("base_to_new"):
        for config in ("vit_b16_ep10", "vit_b16_ep10@OPTIM.MAX_EPOCH=1"):
            for change in ("", f"{LAMBDA}=0.5"):
                label = config + (("," if "@" in config else "@") + change if change else "")
                add_pair(tmp_path, name, 80, 60, trainer="DePT_CoOp", config=label)
    compared = [bool(record.published) for record in summary_of(tmp_path).of("lambda")]
    assert compared == [True, True, False, False]


def test_all_formats(tmp_path):
    add_pair(tmp_path, "mini_world", 80, 60, seed=1)
    add_pair(tmp_path, "mini_world", 90, 70, seed=2)
    markdown = parse(tmp_path, "--format", "markdown").stdout.splitlines()
    assert markdown[2].count("|") == markdown[3].count("|") == markdown[4].count("|")
    latex = parse(tmp_path, "--format", "latex").stdout
    assert r"mini\_world & CoOp & 85.00{\scriptsize$\,\pm\,$7.07}" in latex
    content = json.loads(parse(tmp_path, "--format", "json").stdout)
    assert content["records"][0]["metrics"]["base"]["mean"] == 85
    out = tmp_path / "table.csv"
    assert parse(tmp_path, "--format", "csv", "--out", out).stdout == ""
    assert next(csv.DictReader(out.open()))["new"] == "65.0"


def write_log(root: Path, path: str, name: str = "log.txt", **fields) -> None:
    (root / path).mkdir(parents=True, exist_ok=True)
    (root / path / name).write_text(original_log(**fields))


def test_original_logs_of_both_public_layouts(tmp_path):
    coop = "base2new/{}/oxford_pets/shots_16/CoOp/vit_b16/seed{}"
    dept = "b2n/{}/ExtrasLinearProbeCoOp/oxford_pets/shots16/vit_b16/seed{}"
    for seed in (1, 2):
        for stage, classes, correct in (("train_base", "base", 937), ("test_new", "new", 971)):
            fields = {"correct": correct + seed, "classes": classes, "seed": seed}
            write_log(tmp_path, coop.format(stage, seed), **fields)
            write_log(tmp_path, dept.format(stage, seed), **fields)
    records = summary_of(tmp_path).records
    assert {r.trainer for r in records} == {"CoOp", "DePT_CoOp"}
    for record in records:
        assert record.metrics["base"].mean == pytest.approx(93.85)
        assert record.metrics["new"].mean == pytest.approx(97.25)
        assert record.published


def test_of_repeated_original_runs_the_newest_complete_one_counts(tmp_path):
    path = "base2new/train_base/oxford_pets/shots_16/CoOp/vit_b16/seed1"
    write_log(tmp_path, path, correct=100)
    write_log(tmp_path, path, "log.txt-2024-01-01-10-00-00", correct=200)
    write_log(tmp_path, path, "log.txt-2024-01-02-10-00-00", correct=300, test=False)
    assert summary_of(tmp_path).records[0].metrics["base"].mean == 20
    write_log(tmp_path, path.replace("seed1", "seed2"), correct=300, test=False)
    assert "unfinished" in load_scores(tmp_path)[1][0]


def test_original_cross_dataset_runs(tmp_path):
    home = "output/imagenet/CoCoOp/vit_16shots/seed1"
    write_log(tmp_path, home, correct=710, dataset="imagenet", classes="all", trainer="CoCoOp")
    for target in ("dtd", "eurosat"):
        fields = {"dataset": target, "classes": "all", "model_dir": home, "trainer": "CoCoOp"}
        write_log(
            tmp_path, f"output/evaluation/CoCoOp/vit_16shots/{target}/seed1", correct=450, **fields
        )
    cross = summary_of(tmp_path).of("cross_dataset")
    assert [r.dataset for r in cross] == ["imagenet", "dtd", "eurosat", AVERAGE]
    assert cross[0].published == published.lookup(
        "cross_dataset", trainer="CoCoOp", dataset="imagenet"
    )


def test_original_few_shot_runs_keep_their_variants_apart(tmp_path):
    for n, correct in ((4, 500), (16, 600)):
        path = f"output/oxford_pets/CoOp/vit_16shots/nctx{n}_cscFalse_ctpend/seed1"
        write_log(tmp_path, path, correct=correct, classes="all")
    records = summary_of(tmp_path).of("all_classes")
    assert [(r.shots, r.metrics["accuracy"].mean) for r in records] == [(16, 60), (16, 50)]


def test_a_model_of_all_classes_is_no_base_to_new_run(tmp_path):
    """Where it saw images without labels it has a table of its own; with labels it has none."""
    saw = {"model_classes": "all", "sees": ["unlabeled_images", "images_of_new_classes"]}
    for stage, accuracy in (("train_all", 70), ("test_base", 80), ("test_new", 60)):
        options = {"shots": -1, **saw, "classes": stage.rsplit("_")[-1]}
        add_run(
            tmp_path / "kd", f"transductive/{stage}/dtd", accuracy, trainer="PromptKD", **options
        )
    summary = summary_of(tmp_path / "kd")
    metrics = only(summary.records, protocol="transductive").metrics
    assert (metrics["base"].mean, metrics["new"].mean) == (80, 60)
    assert only(summary.records, protocol="all_classes").metrics["accuracy"].mean == 70
    assert not summary.of("base_to_new") and not summary.missing
    add_run(tmp_path / "own", "x/test_new/dtd", 90, model_classes="all", sees=[])
    scores, problems = load_scores(tmp_path / "own")
    assert not scores and "labels of all classes" in problems[0]


def test_an_original_log_alone_says_what_it_is(tmp_path):
    write_log(tmp_path, "somewhere", correct=900, seed=7, config="vit_b16_ep50")
    (record,) = summary_of(tmp_path).records
    assert (record.dataset, record.config, record.shots) == ("oxford_pets", "vit_b16_ep50", 16)
    assert record.metrics["base"].seeds == (7,)


def test_a_validation_result_is_not_taken_for_the_test(tmp_path):
    path = "base2new/train_base/oxford_pets/shots_16/CoOp/vit_b16/seed{}"
    validation = original_log(correct=990).replace("*test*", "*val*")
    write_log(tmp_path, path.format(1), correct=900)
    log = tmp_path / path.format(1) / "log.txt"
    log.write_text(validation + "Evaluate on the *test* set\n" + validation + log.read_text())
    write_log(tmp_path, path.format(2), correct=900)
    (tmp_path / path.format(2) / "log.txt").write_text(validation)
    scores, problems = load_scores(tmp_path)
    assert [score.accuracy for score in scores] == [90] and "unfinished" in problems[0]


def test_original_configurations_are_compared_too(tmp_path):
    path = "base2new/train_base/oxford_pets/shots_16/CoOp/vit_b16/seed{}"
    write_log(tmp_path, path.format(1), correct=100, seed=1)
    write_log(tmp_path, path.format(2), correct=100, seed=2, lr=0.5)
    assert "OPTIM.LR" in summary_of(tmp_path).refused[0]


@pytest.mark.parametrize(
    "options",
    [
        ["nowhere"],
        [".", "--format", "docx"],
        [".", "--seeds", "one"],
        [".", "--trainers", "Nobody"],
    ],
)
def test_a_mistake_is_one_line(tmp_path, options):
    add_pair(tmp_path, "pets", 80, 60)
    answer = parse(tmp_path / options[0], *options[1:])
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1


def test_layout_round_trip():
    config = config_label("tiny", ["OPTIM.LR", "0.1", LAMBDA, "0.5"])
    assert changed_settings(config) == {"OPTIM.LR": "0.1", LAMBDA: "0.5"}
    place = Place("train_base", "pets", 16, "CoOp", config, 3, "base2new")
    assert read_place(Path("output") / place.folder) == place
    odd = [config_label("tiny", ["MODEL.INIT_WEIGHTS", name]) for name in ("a/b c", "a/b_c")]
    assert len(set(odd)) == 2 and not any(set("/ ") & set(name) for name in odd)


@pytest.mark.parametrize("option", ["--html", "--out", "--plot"])
def test_files_that_cannot_be_written_are_named_before_the_work(tmp_path, option):
    (tmp_path / "file").write_text("")
    answer = parse(tmp_path, option, tmp_path / "file" / "x.png")
    assert answer.returncode == 2 and "cannot write" in answer.stderr
    answer = parse(tmp_path, option, tmp_path)
    assert answer.returncode == 2 and "is a folder" in answer.stderr


def test_a_picture_for_a_dark_page(tmp_path):
    add_pair(tmp_path, "oxford_pets", 90.0, 80.0)
    pages = [tmp_path / "light.png", tmp_path / "dark.png"]
    for page, words in zip(pages, ([], ["--dark"]), strict=True):
        answer = parse(tmp_path, "--plot", page, *words)
        assert answer.returncode == 0, answer.stderr
    corners = [Image.open(page).convert("RGB").getpixel((0, 0)) for page in pages]
    assert corners == [(255, 255, 255), (13, 17, 23)]
    answer = parse(tmp_path, "--dark")
    assert answer.returncode == 2 and answer.stderr == "error: --dark is for --plot FILE\n"

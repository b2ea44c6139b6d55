"""Tables and pictures, number by number, from a summary worked out by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from experiments.results import plots, published
from experiments.results.all_tables import make_tables
from experiments.results.grids import number
from experiments.results.latex import as_latex
from experiments.results.records import AVERAGE, Stat
from experiments.results.rendering import as_csv, as_json, as_markdown, as_text
from experiments.results.scores import load_scores
from experiments.results.summary import average, base_new_h, summarize
from experiments.results.sweeps import ABLATION, LAMBDA, LAMBDAS, add_sweeps
from tests.experiments.fake_runs import add_pair, add_run
from tuning.naming import wrapped_name

# Two data sets, seeds 1 and 2: base and new accuracy of each method.
RUNS = {
    ("CoOp", "dtd"): [(80, 60), (90, 70)],
    ("DePT_CoOp", "dtd"): [(84, 64), (88, 66)],
    ("CoOp", "eurosat"): [(50, 40), (70, 44)],
    ("DePT_CoOp", "eurosat"): [(60, 60), (80, 60)],
}


@pytest.fixture
def summary(tmp_path):
    for (trainer, dataset), pairs in RUNS.items():
        for seed, (base, new) in enumerate(pairs, start=1):
            gains = [
                {"classname": f"c{i}", "accuracy": base + (i if trainer == "DePT_CoOp" else -i)}
                for i in range(3)
            ]
            folder = f"base2new/{{}}/{dataset}"
            options = {"trainer": trainer, "seed": seed}
            run = add_run(tmp_path, folder.format("train_base"), base, per_class=gains, **options)
            losses = [{"epoch": e, "loss": seed / e} for e in (1, 2)]
            lines = "".join(json.dumps(line) + "\n" for line in losses)
            (run / "metrics.jsonl").write_text(lines)
            add_run(tmp_path, folder.format("test_new"), new, **options)
    summary = summarize(load_scores(tmp_path)[0])
    add_sweeps(summary)
    return summary


def h(base, new):
    return 2 * base * new / (base + new)


def test_statistics_by_hand():
    assert Stat.of({2: 80.0, 1: 90.0}) == Stat(85.0, pytest.approx(50**0.5), (1, 2))
    assert Stat.of({3: 80.0}) == Stat(80.0, None, (3,))
    assert Stat.of({1: 1.0, 2: 3.0}, mean=7.0).mean == 7.0
    # Seeds that all have pair up; the mean is of the data sets' means.
    assert average([{1: 80.0, 2: 90.0}, {2: 50.0, 3: 60.0}]) == (70.0, {2: 70.0})
    metrics = base_new_h([{1: 80.0, 2: 90.0}], [{1: 60.0, 3: 40.0}])
    assert metrics["base"] == Stat(85.0, pytest.approx(50**0.5), (1, 2))
    assert metrics["h"].mean == pytest.approx(h(85, 50))
    assert metrics["h"].std is None and metrics["h"].seeds == (1,)
    assert set(base_new_h([{1: 80.0}], [{}])) == {"base"}
    assert base_new_h([{1: 80.0}], [{2: 60.0}])["h"] == Stat(h(80, 60), None, ())
    assert base_new_h([{1: 8.0}, {2: 6.0}], [{}])["base"] == Stat(7.0, None, ())
    assert published.harmonic_mean(80, 60) == pytest.approx(68.5714286)
    assert published.harmonic_mean(0, 0) == 0


def test_numbers_as_printed():
    assert number(None) == "missing"
    assert number(Stat(81.456, None, (1,))) == "81.46"
    assert number(Stat(81.456, 0.345, (1, 2))) == "81.46 ± 0.34"


def test_records_by_hand(summary):
    found = {(r.trainer, r.dataset): r.metrics for r in summary.of("base_to_new")}
    for (trainer, dataset), pairs in RUNS.items():
        base, new = np.array(pairs, dtype=float).T
        stats = found[trainer, dataset]
        for name, values in (("base", base), ("new", new)):
            assert stats[name].mean == pytest.approx(values.mean())
            assert stats[name].std == pytest.approx(values.std(ddof=1))
            assert stats[name].seeds == (1, 2)
        assert stats["h"].mean == pytest.approx(h(base.mean(), new.mean()))
        assert stats["h"].std == pytest.approx(h(base, new).std(ddof=1))
    mean = found["DePT_CoOp", AVERAGE]
    assert (mean["base"].mean, mean["new"].mean) == (78, 62.5)
    assert mean["h"].mean == pytest.approx(h(78, 62.5))
    assert mean["h"].std == pytest.approx(np.std([h(72, 62), h(84, 63)], ddof=1))
    assert not summary.missing and not summary.refused


def test_text_of_a_table(summary):
    lines = as_text(make_tables(summary)).splitlines()
    assert lines[0] == "Base to new, 16 shots"
    assert lines[1] == lines[3] == "-" * len(lines[1])
    assert lines[2].split() == ["Data", "set", "Method", "Base", "New", "H", "Seeds"]
    cells = [line.replace(" ± ", "±").split() for line in lines[4:] if line]
    assert cells[:2] == [
        ["average", "CoOp", "72.50±10.61", "53.50±4.95", "61.57±7.10", "1,2"],
        ["DePT_CoOp", "78.00±8.49*", "62.50±0.71*", "69.40±3.80*", "1,2"],
    ]
    paper = published.lookup("base_to_new", trainer="CoOp", dataset="dtd")
    assert cells[2] == ["dtd", "CoOp", "85.00±7.07", "65.00±7.07*", "73.67±7.20", "1,2"]
    assert cells[3] == ["paper", *(f"{paper[k]:.2f}" for k in ("base", "new", "h"))]
    gaps = [85 - paper["base"], 65 - paper["new"], h(85, 65) - paper["h"]]
    assert cells[4] == ["gap", *(f"{gap:+.2f}" for gap in gaps)]
    assert cells[5][1:3] == ["86.00±2.83*", "65.00±1.41*"]  # a tie
    noted = next(i for i, line in enumerate(lines) if line.startswith("*: "))
    assert len(lines[1]) == max(map(len, lines[:noted]))
    assert lines.count("") == 2  # before each further data set
    # Numbers end in one column, names begin in one.
    assert len({line.index("CoOp") for line in lines[4:6]} | {lines[4].index("CoOp")}) == 2
    ends = {line.rindex(" ± ") for line in lines[4:] if " ± " in line}
    assert len(ends) == 1


def test_markdown_and_latex(summary):
    rows = as_markdown(make_tables(summary)).splitlines()
    assert rows[0] == "**Base to new, 16 shots**"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    assert cells[0] == ["Data set", "Method", "Base", "New", "H", "Seeds"]
    assert cells[1] == ["---", "---", "---:", "---:", "---:", "---:"]
    assert cells[2][:3] == ["average", "CoOp", "72.50 ± 10.61"]
    latex = as_latex(make_tables(summary)).splitlines()
    assert latex[:2] == [r"% In the preamble: \usepackage{booktabs}", ""]
    latex = latex[2:]
    assert latex[:2] == [r"\begin{table}[t]", r"\centering"]
    assert latex[2].startswith(r"\caption{Base to new, 16 shots. Accuracy in percent: mean, ")
    assert latex[3] == r"\label{tab:base-to-new-16-shots}"
    latex = latex[1:]
    assert latex[3] == r"\begin{tabular}{llrrrr}"
    assert latex[4] == r"\toprule" and latex[6] == r"\midrule"
    assert latex[-3:] == [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    assert latex[5] == r"Data set & Method & Base & New & H & Seeds \\"
    assert latex[8].startswith(
        r"average & DePT\_CoOp & \textbf{78.00{\scriptsize$\,\pm\,$8.49}} & "
    )


def test_csv_and_json(summary):
    rows = list(csv.DictReader(io.StringIO(as_csv(summary))))
    (row,) = (r for r in rows if (r["trainer"], r["dataset"]) == ("CoOp", "dtd"))
    paper = published.lookup("base_to_new", trainer="CoOp", dataset="dtd")
    assert row["protocol"] == "base_to_new" and row["config"] == "tiny" and row["shots"] == "16"
    assert row["seeds"] == "1 2" and row["source"] == ""
    for name, mean, std in (("base", 85, 50**0.5), ("new", 65, 50**0.5)):
        assert float(row[name]) == mean
        assert float(row[f"{name}_std"]) == pytest.approx(std)
        assert float(row[f"published_{name}"]) == paper[name]
        assert float(row[f"gap_{name}"]) == pytest.approx(mean - paper[name])
    assert float(row["h"]) == pytest.approx(h(85, 65))
    assert row["accuracy"] == row["accuracy_std"] == row["gap_accuracy"] == ""
    content = json.loads(as_json(summary))
    assert set(content) == {"records", "differences", "values", "missing", "refused"}
    assert len(content["records"]) == len(summary.records) == len(rows)


def test_order_of_methods_data_sets_and_shots(tmp_path):
    """Methods in the paper's order, each before its DePT_, unknown ones first; many shots first."""
    for trainer in ("DePT_CoOp", "MaPLe", "Mine", "CoOp", "DePT_MaPLe"):
        for dataset in ("ucf101", "caltech101", "zoo"):
            add_pair(tmp_path, dataset, 80, 60, trainer=trainer)
    add_pair(tmp_path, "dtd", 80, 60, shots=4)
    add_pair(tmp_path, "dtd", 80, 60, shots=-1)
    add_pair(tmp_path, "dtd", 80, 60, shots=1)
    tables = make_tables(summarize(load_scores(tmp_path)[0]))
    assert [t.title for t in tables[:4]] == [
        "Base to new, 16 shots",
        "Base to new, 4 shots",
        "Base to new, 1 shot",
        "Base to new, all images",
    ]
    lines = [line.keys for line in tables[0].lines]
    assert list(dict.fromkeys(key[0] for key in lines)) == [
        *(AVERAGE, "caltech101", "ucf101", "zoo"),
    ]
    known = published.methods()
    expected = sorted(("CoOp", "MaPLe"), key=known.index)
    order = ["Mine", *(name for m in expected for name in (m, f"DePT_{m}"))]
    assert [key[1] for key in lines[:5]] == order
    (few_shot,) = tables[4:]
    assert few_shot.title == "Few-shot learning, base to new"
    assert [line.keys for line in few_shot.lines] == [
        ["dtd", "CoOp", shots] for shots in ("-1", "1", "4")
    ]


def test_seeds_as_printed(tmp_path):
    for seed in (1, 2, 3):
        add_pair(tmp_path, "dtd", 80, 60, seed=seed)
    add_run(tmp_path, "base2new/train_base/pets", 80, seed=5)
    add_run(tmp_path, "base2new/train_base/pets", 80, seed=7)
    for seed in (1, 2, 4):
        add_run(tmp_path, "base2new/test_new/pets", 60, seed=seed)
    text = as_text(make_tables(summarize(load_scores(tmp_path)[0])))
    assert text.splitlines()[-1].endswith("5,7 / 1,2,4 / none in common")
    assert any(line.endswith("  1-3") for line in text.splitlines())


def test_transfers_one_line_per_method(tmp_path):
    for trainer, extra in (("CoOp", 0), ("DePT_CoOp", 2)):
        options = {"trainer": trainer, "seed": 1}
        add_run(tmp_path, "all_classes/train_all/imagenet", 71 + extra, **options)
        for target, accuracy in (("dtd", 40), ("eurosat", 50)):
            place = f"cross_dataset/from_imagenet/{target}"
            add_run(tmp_path, place, accuracy + extra, **options)
    table = make_tables(summarize(load_scores(tmp_path)[0]))[0]
    assert table.title == "Cross-dataset transfer from imagenet, 16 shots"
    assert table.columns == ["imagenet", "dtd", "eurosat", AVERAGE]
    means = [{n: stat.mean for n, stat in line.cells.items()} for line in table.lines]
    assert means[0] == {"imagenet": 71, "dtd": 40, "eurosat": 50, AVERAGE: 45}
    assert means[1] == {"imagenet": 73, "dtd": 42, "eurosat": 52, AVERAGE: 47}
    paper = published.lookup("cross_dataset", trainer="CoOp", dataset="dtd")
    assert table.lines[0].published["dtd"] == paper["accuracy"]
    assert AVERAGE not in table.lines[0].published  # of other data sets than the paper's


def test_lines_of_the_sweeps():
    assert LAMBDAS == (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    assert LAMBDA == "TRAINER.DEPT.WEIGHT"
    assert [(s.bare, s.changes) for s in ABLATION] == [
        (True, {}),
        (False, {"TRAINER.DEPT.FUSION": "none"}),
        (False, {"TRAINER.DEPT.CWT": "shared"}),
        (False, {"TRAINER.DEPT.HEAD": "similarity"}),
        (False, {"TRAINER.DEPT.ROWS": "image"}),
        (False, {}),
    ]
    # Each line of the paper's table has its numbers under its name, and there is no other line.
    with open(published.FOLDER / "ablation_coop.csv", newline="") as file:
        assert [row["setting"] for row in csv.DictReader(file)] == [s.name for s in ABLATION]
    for setting in ABLATION:
        assert published.lookup("ablation_coop", setting=setting.name), setting.name
    for value in LAMBDAS:
        assert published.lookup("lambda_coop", **{"lambda": value}), value


def test_the_docs_list_the_ablation():
    text = (Path(__file__).resolve().parents[3] / "docs" / "reproduce.md").read_text()
    _, _, rest = text.partition("| line of the ablation | runs |\n|---|---|\n")
    found = [line.strip("| ").split(" | ") for line in rest.split("\n\n")[0].splitlines()]
    expected = [
        [
            setting.label,
            " ".join(
                [
                    published.SWEPT if setting.bare else wrapped_name(published.SWEPT),
                    *(f"`{key} {value}`" for key, value in setting.changes.items()),
                ]
            ),
        ]
        for setting in ABLATION
    ]
    assert found == expected


# --- Pictures -----------------------------------------------------------------------------------


def drawn_points(axis: Axes) -> dict[str, tuple[float, float]]:
    return {
        bar.get_label(): tuple(float(v[0]) for v in bar.lines[0].get_data())
        for bar in axis.containers
    }


def test_main_picture(summary, monkeypatch):
    """Points at (base, new), an arrow from a method to its DePT_, lines of equal H."""
    contours = []
    real = Axes.contour

    def contour(axis, *what, **options):
        contours.append((axis, *what))
        return real(axis, *what, **options)

    monkeypatch.setattr(Axes, "contour", contour)
    figure = plots.base_new_arrows(summary).figure()
    axes = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(axes) == [AVERAGE, "dtd", "eurosat"]
    points = drawn_points(axes["dtd"])
    assert points == {"CoOp": (85, 65), "DePT_CoOp": (86, 65)}
    for axis in axes.values():
        assert axis.get_xlabel() == "base accuracy (%)"
        assert axis.get_ylabel() == "new accuracy (%)"
    (arrow,) = [text for text in axes["dtd"].texts if hasattr(text, "arrow_patch")]
    assert (arrow.xyann, arrow.xy) == ((85, 65), (86, 65))
    hollow, filled = (bar.lines[0] for bar in axes["dtd"].containers)
    assert hollow.get_markerfacecolor() == "white" != filled.get_markerfacecolor()
    assert hollow.get_color() == filled.get_color()
    spread = axes["dtd"].containers[0].lines[2]
    ends = [segments.get_segments()[0] for segments in spread]
    std = 50**0.5
    np.testing.assert_allclose(ends[0], [[85 - std, 65], [85 + std, 65]])
    np.testing.assert_allclose(ends[1], [[85, 65 - std], [85, 65 + std]])
    assert [axis for axis, *_ in contours] == list(axes.values())
    for axis, base, new, values in contours:
        np.testing.assert_allclose(values, 2 * base * new / (base + new), rtol=1e-9)
        assert (base.min(), base.max()) == pytest.approx(axis.get_xlim())
        assert (new.min(), new.max()) == pytest.approx(axis.get_ylim())
        for stat in drawn_points(axis).values():
            assert base.min() < stat[0] < base.max() and new.min() < stat[1] < new.max()


def test_ranks_are_by_h(summary):
    figure = plots.dataset_ranks(summary).figure()
    found = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(found) == [AVERAGE, "dtd", "eurosat"]
    expected = {AVERAGE: (h(72.5, 53.5), h(78, 62.5)), "dtd": (h(85, 65), h(86, 65))}
    for name, values in expected.items():
        assert [label.get_text() for label in found[name].get_yticklabels()] == [
            "CoOp",
            "DePT_CoOp",
        ]
        points = drawn_points(found[name])
        assert points["CoOp"] == (pytest.approx(values[0]), 0)
        assert points["DePT_CoOp"] == (pytest.approx(values[1]), 1)
        assert found[name].get_xlabel() == "H (%)"


def curves(figure) -> dict[tuple[str, str], list[tuple[float, float]]]:
    return {
        (axis.get_title(), line.get_label()): list(zip(*map(list, line.get_data()), strict=True))
        for axis in figure.axes
        for line in axis.lines
    }


def test_learning_curves_are_means_over_seeds(summary):
    figure = plots.learning_curves(summary).figure()
    found = curves(figure)
    assert set(found) == {(d, m) for m, d in RUNS}
    assert all(points == [(1, 1.5), (2, 0.75)] for points in found.values())
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.5) and band[:, 1].max() == pytest.approx(2)
    assert figure.axes[0].get_xlabel() == "epoch"
    assert figure.axes[0].get_ylabel() == "training loss"
    styles = {line.get_label(): line.get_linestyle() for line in figure.axes[0].lines}
    assert styles == {"CoOp": "--", "DePT_CoOp": "-"}


def test_few_shot_and_lambda_curves(tmp_path):
    for shots, base in ((1, 60), (4, 70), (16, 80)):
        add_pair(tmp_path, "dtd", base, 60, shots=shots, trainer="DePT_CoOp")
        add_run(tmp_path, "all_classes/train_all/dtd", base / 2, shots=shots, trainer="DePT_CoOp")
    for value, base in (("0.1", 72), ("0.9", 78)):
        config = f"tiny@{LAMBDA}={value}"
        add_pair(tmp_path, "dtd", base, 50, config=config, trainer="DePT_CoOp")
    summary = summarize(load_scores(tmp_path)[0])
    add_sweeps(summary)
    few = curves(plots.few_shot_curves(summary).figure())
    expected = [(1, h(60, 60)), (4, h(70, 60)), (16, h(80, 60))]
    np.testing.assert_allclose(few["dtd: H", "DePT_CoOp"], expected)
    assert few["dtd: all classes", "DePT_CoOp"] == [(1, 30), (4, 35), (16, 40)]
    assert len(few) == 2
    found = curves(plots.lambda_curves(summary).figure())
    assert found["dtd", "DePT_CoOp base"] == [(0.1, 72), (0.7, 80), (0.9, 78)]
    assert found["dtd", "DePT_CoOp new"] == [(0.1, 50), (0.7, 60), (0.9, 50)]
    assert found["dtd", "DePT_CoOp h"][0] == pytest.approx((0.1, h(72, 50)))


def test_gains_per_class(summary):
    """DePT less bare, smallest first: c_i differs by 2i and by what the runs differ."""
    figure = plots.class_gains(summary).figure()
    axes = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(axes) == ["DePT_CoOp, dtd, base", "DePT_CoOp, eurosat, base"]
    for axis, gains in zip(axes.values(), ([1, 3, 5], [10, 12, 14]), strict=True):
        assert [bar.get_width() for bar in axis.patches] == pytest.approx(gains)
        assert [label.get_text() for label in axis.get_yticklabels()] == ["c0", "c1", "c2"]
        assert axis.get_xlabel() == "gain (points)"


def test_every_picture_is_saved_twice(summary, tmp_path):
    files = plots.save_all(summary, tmp_path / "pictures")
    names = ("base_new", "datasets", "curves", "classes")
    expected = [tmp_path / "pictures" / f"{n}.{kind}" for n in names for kind in ("png", "pdf")]
    assert files == expected
    assert [f.read_bytes()[:4] for f in files] == [b"\x89PNG", b"%PDF"] * 4

"""The HTML report, looked at by a real browser where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from experiments.results.report import write_report
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from experiments.results.sweeps import LAMBDA, add_sweeps
from tests.experiments.fake_runs import add_pair

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
# Measures the page from inside: its width, what sticks out of it, and pictures that didn't load.
PROBE = """<script>addEventListener("load", () => { document.title = JSON.stringify({
  width: innerWidth, content: document.documentElement.scrollWidth,
  broken: [...document.images].filter(i => !i.naturalWidth).length,
  images: document.images.length,
  tables: document.querySelectorAll("table").length,
  smallest: Math.min(...[...document.querySelectorAll("td,li,p")].map(
    e => parseFloat(getComputedStyle(e).fontSize))) }) })</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report with every plot there is."""
    root = tmp_path_factory.mktemp("output")
    for dataset in ("mini_shapes", "caltech101"):
        for i, trainer in enumerate(("ZeroshotCLIP", "CoOp", "DePT_CoOp")):
            for seed in (1, 2, 3):
                gains = [{"classname": f"class {c}", "accuracy": 50 + c * i} for c in range(6)]
                options = {"seed": seed, "trainer": trainer, "per_class": gains}
                options["sees"] = ["teacher"] if trainer == "DePT_CoOp" else []
                add_pair(root, dataset, 70 + 5 * i + seed, 60 + i, **options)
            add_pair(root, dataset, 60, 50, shots=4, trainer=trainer)
    add_pair(root, "mini_shapes", 66, 55, config=f"tiny@{LAMBDA}=0.3", trainer="DePT_CoOp")
    for folder in root.rglob("seed*"):
        epochs = [{"epoch": e, "loss": 3 / e} for e in range(1, 11)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    summary = summarize(load_scores(root)[0])
    add_sweeps(summary)
    write_report(summary, root / "report.html")
    return root / "report.html"


def test_the_page_stands_alone(page):
    text = page.read_text()
    assert page.stat().st_size < 2_000_000
    assert "<script" not in text and "http://" not in text and "https://" not in text
    for title in ("Base against new", "H per data set", "Learning curves", "Few-shot learning"):
        assert f"<h2>{title}" in text
    for title in ("Weight of the CAT loss", "Gain of DePT per class"):
        assert f"<h2>{title}" in text
    assert "98.17" in text  # the paper's CoOp on Caltech101
    assert "DePT_CoOp [T]" in text and "<p class=note>[T] sees a second trained model</p>" in text


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(page, tmp_path, width):
    probed = tmp_path / "probed.html"
    # A window may have a least width; a frame of exactly this one hasn't.
    probed.write_text(page.read_text().replace("</head>", PROBE + "</head>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="probed.html" style="border:0;width:{width}px;'
        'height:9000px"></iframe><script>addEventListener("load", () => setTimeout(() => '
        "document.title = frames[0].document.title, 500))</script>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--window-size={max(width, 500)},9000", "--virtual-time-budget=5000"]
    shot = tmp_path / "shot.png"
    for what in ("--dump-dom", f"--screenshot={shot}"):
        command = [BROWSER, *options, what, frame.as_uri()]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if what == "--dump-dom":
            seen = json.loads(answer.stdout.partition("<title>")[2].partition("</title>")[0])
    assert seen["width"] == width
    assert seen["content"] <= width  # nothing makes the page itself scroll sideways
    assert seen["broken"] == 0 and seen["images"] == 6 and seen["tables"] >= 4
    assert seen["smallest"] >= 12
    assert len(Image.open(shot).convert("L").getcolors(256)) > 50  # something was painted

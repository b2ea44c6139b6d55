"""The HTML report, looked at by a real browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from experiments.results.pictures import spread
from experiments.results.report import write_report
from experiments.results.scores import load_scores
from experiments.results.subjects import Subjects
from experiments.results.summary import summarize
from experiments.results.sweeps import LAMBDA, add_sweeps
from tests.experiments.fake_runs import add_pair

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
# Measures the page from inside: its width, what sticks out of it, and pictures that didn't load.
PROBE = """<script>addEventListener("load", () => { document.title = JSON.stringify({
  width: innerWidth, content: document.documentElement.scrollWidth,
  pictures: [...document.querySelectorAll("svg[role=img]")].filter(
    s => s.getBoundingClientRect().width > 100).length,
  tables: document.querySelectorAll("table").length,
  dark: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector("svg text")).fill,
  smallest: Math.min(...[...document.querySelectorAll("td,li,p")].map(
    e => parseFloat(getComputedStyle(e).fontSize))),
  sorted: sorts() }) })
function sorts() {  // the heads of H and of the methods, pressed one after the other
  const table = document.querySelector("table"), found = [];
  for (const column of [3, 3, 0]) {
    const button = table.tHead.rows[0].cells[column].querySelector("button");
    button.focus();
    button.click();
    found.push([document.activeElement === button,
      [...table.querySelectorAll("th")].map(th => th.getAttribute("aria-sort")).join(),
      [...table.tBodies[0].rows].map(row => row.cells[0].textContent)]);
  }
  return found;
}</script>"""


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
        (folder / "log.txt").write_text("done\n")
    summary = summarize(load_scores(root)[0])
    add_sweeps(summary)
    write_report(summary, root / "report.html")
    return root / "report.html"


class Elements(HTMLParser):
    """Every element of a page: its name and its attributes."""

    VOID = ("meta", "input", "br", "img")

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open  # each is closed, in turn

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.found if tag == name]


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page.read_text())


def test_the_page_stands_alone(page, elements):
    text = page.read_text()
    assert page.stat().st_size < 1_000_000
    assert "http://" not in text and "https://" not in text and "@import" not in text
    for title in ("Base against new", "H per data set", "Learning curves"):
        assert f">{title}, 16 shots</h2>" in text and f">{title}, 4 shots</h2>" in text
    assert ">Few-shot learning</h2>" in text
    for title in ("Weight of the CAT loss", "Gain of DePT per class"):
        assert re.search(rf"<h2[^>]*>{title}", text)
    assert "98.17" in text  # the paper's CoOp on Caltech101
    assert "DePT_CoOp [T]" in text and "<p class=note>[T] sees a second trained model</p>" in text
    loaded = [
        a.get("src") or a.get("srcset") for _, a in elements.found if {"src", "srcset"} & {*a}
    ]
    assert loaded == [] and elements.of("link") == []


def test_the_policy_lets_only_the_pages_own_script_run(page):
    text = page.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    only = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src"
    assert f"content=\"{only} 'sha256-{digest}'\"" in text


def test_twenty_methods_stay_small_and_apart(tmp_path):
    methods = [f"Method{i}" for i in range(10)]
    for i, method in enumerate(methods):
        for trainer in (method, f"DePT_{method}"):
            for seed in (1, 2, 3):
                add_pair(tmp_path, "dtd", 70 + i + seed / 9, 60 - i, trainer=trainer, seed=seed)
    for folder in tmp_path.rglob("train_base/*/*/*/*/seed*"):
        epochs = [{"epoch": e, "loss": 3 / e} for e in range(1, 51)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    summary = summarize(load_scores(tmp_path)[0])
    write_report(summary, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 300_000
    subjects = Subjects(summary)
    looks = {(look.color, look.marker, one.wrapped) for one, look in subjects.looks.items()}
    assert len(looks) == 20


def test_ids_are_unique_and_what_refers_to_them_finds_them(elements):
    ids = Counter(a["id"] for _, a in elements.found if "id" in a)
    assert ids and set(ids.values()) == {1}
    within = [a["href"][1:] for tag, a in elements.found if a.get("href", "").startswith("#")]
    clips = re.findall(r"url\(#([^)]+)\)", str(elements.found))
    assert within and clips and {*within, *clips} <= set(ids)


def test_pictures_say_what_is_seen(elements):
    """A picture has a text, of the numbers; what only repeats the text beside it is hidden."""
    assert all(a.get("alt") for a in elements.of("img"))
    told = [a["aria-label"] for a in elements.of("svg") if a.get("role") == "img"]
    rest = [a for a in elements.of("svg") if a.get("role") != "img"]
    assert told and all(a.get("aria-hidden") == "true" for a in rest)
    assert (
        "DePT_CoOp 82.0 base, 62.0 new, H 70.6: best harmonic mean of 3 methods; "
        "ZeroshotCLIP 72.0 base, 60.0 new, H 65.5: the lowest; "
        "with DePT H is higher for 1 of 1 methods."
    ) in told
    assert "H from the highest: DePT_CoOp 70.6, CoOp 68.1, ZeroshotCLIP 65.5." in told
    assert any("CoOp from 3 at 1 to 0.3 at 10" in text for text in told)
    assert any("5 of 6 classes gain; most class 5 (+5.0 points), least" in text for text in told)


def test_links_lead_to_the_runs_files(page, elements):
    links = [a["href"] for a in elements.of("a") if not a["href"].startswith("#")]
    runs = len(list(page.parent.rglob("result.json")))
    assert len(links) == 3 * runs
    assert all((page.parent / unquote(link)).exists() for link in links)
    assert not any(link.startswith(("/", "..")) for link in links)  # the folder can be moved


def test_heads_of_columns_are_that(elements):
    heads = elements.of("th")
    assert heads and all(a.get("scope") == "col" for a in heads)
    assert len(elements.of("thead")) == len(elements.of("table")) >= 4


def test_names_stay_names(tmp_path):
    name = "<script>alert(1)</script>\"' onload=x #?%"
    add_pair(tmp_path, name.replace("/", "∕"), 80, 70)
    write_report(summarize(load_scores(tmp_path)[0]), tmp_path / "page.html")
    elements = Elements((tmp_path / "page.html").read_text())
    assert len(elements.of("script")) == 1
    assert not any("onload" in attributes for _, attributes in elements.found)
    links = [a["href"] for a in elements.of("a") if not a["href"].startswith("#")]
    assert links and all((tmp_path / unquote(link)).exists() for link in links)


def test_labels_give_way_to_each_other():
    assert spread([0.0, 1.0, 5.0], 0.5) == [0, 1, 5]
    assert spread([1.0, 1.0, 1.0], 0.5) == [0.5, 1, 1.5]
    found = spread([3.0, 1.0, 1.25, 1.5], 0.5)
    assert found == [3, 0.75, 1.25, 1.75]
    crowded = sorted(spread([0.01 * i for i in range(20)], 0.05))
    gaps = [b - a for a, b in zip(crowded, crowded[1:], strict=False)]
    assert min(gaps) == pytest.approx(0.05)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_in_a_browser(page, tmp_path, width, scheme):
    probed = tmp_path / "probed.html"
    # The page's policy forbids all scripts but its own. A window may have a least width; a frame of
    # exactly this one hasn't.
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    probed.write_text(text.replace("</head>", PROBE + "</head>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="probed.html" style="border:0;width:{width}px;'
        'height:9000px"></iframe><script>addEventListener("load", () => setTimeout(() => '
        "document.title = frames[0].document.title, 500))</script>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--window-size={max(width, 500)},9000", "--virtual-time-budget=5000"]
    options.append(f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}")
    shot = tmp_path / "shot.png"
    for what in ("--dump-dom", f"--screenshot={shot}"):
        command = [BROWSER, *options, what, frame.as_uri()]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if what == "--dump-dom":
            seen = json.loads(answer.stdout.partition("<title>")[2].partition("</title>")[0])
    assert seen["width"] == width
    assert seen["content"] <= width  # nothing makes the page itself scroll sideways
    assert seen["pictures"] == text.count('role="img"') and seen["tables"] >= 4
    assert seen["smallest"] >= 12
    grey = [int(value) for value in re.findall(r"\d+", seen["dark"])[:3]]
    ink = [int(value) for value in re.findall(r"\d+", seen["ink"])[:3]]
    assert (max(grey) < 60 and min(ink) > 200) if scheme == "dark" else min(grey) > 200 > max(ink)
    methods = ["ZeroshotCLIP", "CoOp", "DePT_CoOp [T]"]
    assert seen["sorted"] == [
        [True, ",,,descending,", methods[::-1]],
        [True, ",,,ascending,", methods],
        [True, "ascending,,,,", ["CoOp", "DePT_CoOp [T]", "ZeroshotCLIP"]],
    ]
    assert len(Image.open(shot).convert("L").getcolors(256)) > 50  # something was painted

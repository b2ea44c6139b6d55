"""The commands of README.md and docs/reproduce.md do what they say, shown on the mini world.

Here with one seed, one image per class and one epoch, on one data set, and in this process; with
RUN_DOCS=1 in the environment as they stand, on the data sets that the page names for the mini
world, which takes long.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import analysis_command as analyze
from experiments.launch import make_plan, parse_args
from experiments.protocols import PROTOCOLS
from experiments.results import command as parse_results
from tests.scripts import in_process

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/reproduce.md")
WHOLE = bool(os.environ.get("RUN_DOCS"))
BRIEF = ["--seeds", "1", "--shots", "1", "--opts", "OPTIM.MAX_EPOCH", "1"]
TARGETS = {
    "cross_dataset": ["mini_fabrics", "mini_scenes"],
    "domain_generalization": ["mini_shapes_sketch", "mini_shapes_night"],
}

MANY = ("corruptions",)  # 18 tests of each trainer: one stands for all
# What measures costs, measures those of a little: tiny towers, and of the protocols the cheapest.
LITTLE = ["--backbone", "tiny", "--classes", "2", "5", "--images", "2", "--repeats", "1"]
LITTLE += ["--protocols", "zero_shot", "--datasets", "dtd", "--trainers", "ZeroshotCLIP"]
# Those of README.md that take what a test has not: the internet, a shell's minutes, other packages.
ELSEWHERE = ("prepare_data.py", "export.py", ".sh")


def lines(page: str) -> list[str]:
    """Return the lines of the code blocks of a page, continued ones joined."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.M)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands(script: str) -> list[list[str]]:
    """Return the arguments of each call of a script in a code block of the pages."""
    found = []
    for line in (line for page in PAGES for line in lines(page)):
        words = shlex.split(line.replace("…", "X"), comments=True)
        if any(word.endswith(script) for word in words):
            place = next(i for i, word in enumerate(words) if word.endswith(script))
            found.append(words[place + 1 :])
    return found


class MiniWorld:
    """Runs a page's commands on the mini world: its data sets, its configs, a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.root, self.folder = folder / "data", folder
        self.data_sets = next(words for words in map(str.split, self.hints()) if words)[1:4]
        self.world = str(self.root)

    @staticmethod
    def hints() -> list[str]:
        """What the page says to add on the mini world."""
        return [line for line in lines("docs/reproduce.md") if line.startswith("--datasets ")]

    def run(self, line: str) -> subprocess.CompletedProcess:
        """Run one of the page's commands, in the page's words as far as the mini world has them."""
        script, *words = shlex.split(line.partition("python ")[2], comments=True)
        found = self.of_this_world(words)
        if script.endswith("run_protocol.py"):
            usual = self.data_sets if WHOLE else ["mini_shapes"]
            targets = TARGETS.get(words[0], usual)
            if words[0] in MANY and not WHOLE:
                # Of an option that is given twice the second counts.
                found += ["--trainers", words[words.index("--seeds") - 1]]
            if "--datasets" not in words:
                found += ["--datasets", *(targets if WHOLE else targets[:1])]
            found += ["--source", "mini_shapes", "--root", self.world]
            found += ["--output", str(self.folder / "output")]
            found += ["--jobs", "2"] if WHOLE else ["--jobs", "1", *BRIEF]
        elif script.endswith("hours.py") and not WHOLE:
            found += LITTLE
        command = [sys.executable, str(ROOT / script), *found]
        done = self.in_processes(command) if WHOLE else in_process.run(command, self.folder)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def in_processes(self, command: list[str]) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True
        )

    def of_this_world(self, words: list[str]) -> list[str]:
        runs = sorted((self.folder / "output").glob("base2new/train_base/*/*/*/*/seed1"))
        changes = {
            "DATA": self.world,
            "eurosat": "mini_shapes",
            "vit_b16_promptkd": "mini",
            "vit_b16_ep10": "mini" if WHOLE else "mini@OPTIM.MAX_EPOCH=1",
            "shots_16": "shots_16" if WHOLE else "shots_1",
            "output/…/seed1": str(runs[-1]) if runs else "",
            "photo.jpg": str(next(self.root.glob("mini_shapes/**/*.jpg"), "")),
        }
        found: list[str] = []
        others = iter(runs)
        for word in words:
            if word == "RUN":
                word = str(next(others))
            for old, new in changes.items():
                word = re.sub(rf"(?<![\w.]){re.escape(old)}(?![\w.])", lambda _, new=new: new, word)
            found += [] if word == "…" else [word]
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> MiniWorld:
    return MiniWorld(tmp_path_factory.mktemp("pages"))


def test_every_protocol_has_its_command():
    assert {arguments[0] for arguments in commands("run_protocol.py")} == set(PROTOCOLS)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page(page, world):
    ran = set()
    for line in lines(page):
        words = line.partition("#")[0].split()
        name = next((Path(word).name for word in words if word.endswith((".py", ".sh"))), None)
        if name is None or name.endswith(ELSEWHERE) and page == "README.md":
            continue
        done = world.run(line)
        ran.add(name)
        if name == "parse_results.py":
            assert "mini_shapes" in done.stdout.replace("\\_", "_")
            assert all(
                (world.folder / n).is_file() for n in re.findall(r"[\w]+\.(?:png|html)", line)
            )
        elif name == "analyze.py":
            assert list((world.folder / "analysis").rglob("*.png"))
        elif name == "predict.py":
            assert "%" in done.stdout or "probability" in done.stdout
        elif name == "hours.py":
            assert "zero_shot" in done.stdout and "ZeroshotCLIP" in done.stdout
    assert len(ran) >= 3


@pytest.mark.parametrize(
    "door,module", [("parse_results.py", parse_results), ("analyze.py", analyze)]
)
def test_tables_and_analyses_take_the_options_that_the_pages_use(door, module, monkeypatch):
    found = commands(door)
    assert found
    for arguments in found:
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        module.parse_args()


def test_folders_that_the_pages_name_are_those_of_the_plans(monkeypatch):
    monkeypatch.chdir(ROOT)
    named = {Path(word) for words in commands("analyze.py") for word in words if "seed" in word}
    planned = {
        job.folder
        for arguments in commands("run_protocol.py")
        if "eurosat" in arguments
        for chain in make_plan(parse_args(arguments))
        for job in chain.jobs
    }
    assert named and named <= planned


@pytest.mark.parametrize(
    "page", [*PAGES, "docs/running.md", "docs/citing.md", "docs/mini_world.md"]
)
def test_files_that_the_pages_name_exist(page):
    text = (ROOT / page).read_text()
    linked = re.findall(r"\]\(([\w./-]+?)(?:#[\w-]+)?\)", text)
    linked += re.findall(r'(?:src|srcset)="([^"]+)"', text)
    named = re.findall(r"(?:scripts|docs|configs|tests|trainers)/[\w/]+\.(?:py|sh|md|yaml)", text)
    for path in linked:
        assert ((ROOT / page).parent / path).is_file(), path
    for path in named:
        assert (ROOT / path).is_file(), path


def test_headings_that_are_linked_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name, heading in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page.read_text()):
            target = page.parent / name if name else page
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert heading in anchors, f"{page.name}: {name}#{heading}"


def test_every_method_has_its_paper_on_the_page():
    page = "".join((ROOT / name).read_text() for name in ("README.md", "docs/citing.md"))
    for file in (ROOT / "trainers").glob("*.py"):
        head = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0]
        for paper in re.findall(r"arXiv\s(\d{4}\.\d{5})", head):
            assert f"arxiv.org/abs/{paper}" in page, f"{file.name}: {paper}"

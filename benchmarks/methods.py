#!/usr/bin/env python3
"""Write docs/methods.md's table from the registry: what methods train, reach, see and cost.

    python benchmarks/methods.py                           all methods; costs as they were measured
    python benchmarks/methods.py --measure                 all costs anew, on this machine
    python benchmarks/methods.py --measure TCP MMA         those of some methods

Parameters are counted on towers in ViT-B/16's shapes with random weights: as the method's usual
config has it, for C classes and n training images where it trains rows of these. Where it reaches
is what it hands to the towers in a training step. A step's cost is a ratio to CoOp's, both in turns
in one run: batch 4, 50 classes, fp32, with the encoding of its views. Measured costs are kept in
benchmarks/method_costs.json, with the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import trainers
from benchmarks import timing
from benchmarks.method_setup import MethodSetup, Settings, classes_of, images
from clip.model import CLIP
from clip.prompting import Branch, Change, Encoders, LowRank, NameShift, Reads, Tokens, Weights
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, atomic_write, read_json, suggest, user_errors, write_json
from dassl.utils.cli import Parser, escape_markdown, markdown_table, positive
from experiments.protocols import ADAPTERS
from experiments.results.folders import TRANSDUCTIVE
from tuning.method import Method
from tuning.naming import is_wrapped, wrapped_name
from tuning.sees import SEES, footnotes, known, marks
from tuning.trainer import PromptTrainer

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods.md"
COSTS = Path(__file__).with_name("method_costs.json")
BEGIN, END = "<!-- written by benchmarks/methods.py -->", "<!-- to here -->"
HEAD = ["method", "paper", "trains", "reaches", "sees", "DePT", "step", "command"]
UNIT = "CoOp"  # whose step is 1
BATCH, CLASSES = 4, 50  # of the steps that are timed
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
WHAT = {
    Tokens: "tokens",
    NameShift: "name's tokens",
    Branch: "branches",
    LowRank: "low-rank",
    Weights: "weights",
}


def methods() -> list[str]:
    """The registered methods without DePT's twins, in alphabetical order; no dropped-in file's."""
    trainers.modules()
    return [
        name
        for name in sorted(TRAINER_REGISTRY.registered_names())
        if not is_wrapped(name)
        and issubclass(TRAINER_REGISTRY.get(name), PromptTrainer)
        and TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
    ]


def needs(name: str) -> str:
    """The settings that name files without which a method can't be built; "" for none."""
    return ", ".join(TRAINER_REGISTRY.get(name).method_class.needs_files)


def teacher_of(name: str) -> str:
    """The setting that names the run without which a method can't take a step; "" for none."""
    return TRAINER_REGISTRY.get(name).method_class.teacher_key


@dataclass(frozen=True)
class Plain:
    """What needs no model: of a method's row in the table."""

    name: str
    paper: str
    sees: str
    dept: str
    command: str


def plain(name: str) -> Plain:
    """What the registry says of a method.

    Its paper is the first one that its file's head names; what it sees, as its usual config has it.
    """
    trainer = TRAINER_REGISTRY.get(name)
    text = sys.modules[trainer.described_in or trainer.__module__].__doc__ or ""
    head = " ".join(" ".join(text.split("\n\n")[:2]).split())
    cfg = Settings(name).cfg()
    sees = set(trainer.method_class.what_it_sees(cfg))
    sees |= {"teacher"} if trainer.method_class.teacher_key else set()
    sees -= set() if cfg.DATASET.FURTHER else {"other_data_sets"}
    protocol = "few_shot_adapters" if name in ADAPTERS else "base_to_new"
    protocol = TRANSDUCTIVE if trainer.method_class.teacher_key else protocol
    return Plain(
        name,
        paper_of(head),
        marks(known(sees)),
        "yes" if wrapped_name(name) in TRAINER_REGISTRY else "no",
        f"`{protocol} --trainers {name}`",
    )


def paper_of(head: str) -> str:
    """The first parenthesis of a file's head that names a year or a number of arXiv's, linked."""
    named = (text for text in re.findall(r"\(([^()]*)\)", head) if re.search(r"\d{4}", text))
    paper = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", next(named, ""))
    return f"after {paper}" if "Adaptation: ours" in head else paper


def built(name: str, model: CLIP, classes: int, images_: int) -> Method:
    """A method by its usual config, for so many classes and training images."""
    trainer = TRAINER_REGISTRY.get(name)
    cfg = Settings(name).cfg()
    with contextlib.redirect_stdout(io.StringIO()):
        method = trainer.build_method(
            cfg, Encoders(model), replace(classes_of(classes), images=images_)
        )
    return method.to(model.logit_scale.device).freeze()


def number_trained(name: str, model: CLIP) -> str:
    """How many parameters a method trains: "2,048", "512 C", "512 C + 512 n"; "" for none."""
    count = {
        (c, n): sum(p.numel() for p in built(name, model, c, n).trained().values())
        for c, n in ((2, 4), (3, 4), (2, 5))
    }
    per_class = count[3, 4] - count[2, 4]
    per_image = count[2, 5] - count[2, 4]
    fixed = count[2, 4] - 2 * per_class - 4 * per_image
    parts = [f"{fixed:,}"] if fixed else []
    parts += [f"{n:,} {of}" for n, of in ((per_class, "C"), (per_image, "n")) if n]
    return " + ".join(parts)


class Watch:
    """Notes what a method hands to the towers: changes, reads, contexts in front of the name."""

    def __init__(self, encoders: Encoders) -> None:
        self.seen: dict[str, dict[str, set[int]]] = {"text": {}, "image": {}}
        self.encoders = encoders
        text, image = encoders.text, encoders.image
        self._wrap(text, "above", lambda x, changes=(), reads=None: ("text", changes, reads))
        self._wrap(text, "_start", self._context)
        self._wrap(
            image, "_run", lambda x, at, changes=(), reads=None, *_: ("image", changes, reads)
        )

    def _wrap(self, tower: Any, name: str, told: Any) -> None:
        real = getattr(tower, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            if noted := told(*args, **options):
                self.note(*noted)
            return real(*args, **options)

        tower.__dict__[name] = wrapped

    def _context(self, layout: Any, ctx: torch.Tensor | None) -> None:
        if ctx is not None and ctx.requires_grad:
            self.seen["text"].setdefault("context", set()).add(0)

    def note(self, tower: str, changes: Sequence[Change], reads: Reads | None) -> None:
        """Take what is handed over; frozen changes count, too."""
        for change in changes:
            self.seen[tower].setdefault(WHAT[type(change)], set()).add(change.layer)
        layers = getattr(self.encoders, tower).layers
        for read in (reads or {}).values():
            self.seen[tower].setdefault("reads", set()).add(read.reaches(layers))

    def told(self) -> str:
        """In words: "text: context; image: tokens 0–8"."""
        towers = []
        for tower, found in self.seen.items():
            parts = [
                what if what == "context" else f"{what} {ranges(layers)}"
                for what, layers in found.items()
            ]
            if parts:
                towers.append(f"{tower}: {', '.join(parts)}")
        return "; ".join(towers)


def ranges(numbers: Iterable[int]) -> str:
    """Return {0, 1, 2, 5} as "0–2, 5"."""
    groups: list[list[int]] = []
    for number in sorted(numbers):
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(f"{g[0]}–{g[-1]}" if len(g) > 1 else f"{g[0]}" for g in groups)


def reached(name: str, model: CLIP) -> str:
    """Where a method reaches into the towers while it trains; "" where it stays behind them."""
    method = built(name, model, 2, 4)
    watch = Watch(method.encoders)
    if not method.trained():
        return watch.told()
    method.train()
    image = images(2, model)
    given: dict[str, torch.Tensor] = {}
    if method.image_layer() is None:
        image = torch.randn(2, method.encoders.embed_dim)
    if method.views_wanted > 1:
        given["other_views"] = torch.stack([image] * (method.views_wanted - 1))
    given |= method.drawn(torch.Generator().manual_seed(1), 1.0)
    method.losses(method.features(image, **given), torch.tensor([0, 1]))
    return watch.told()


# Costs.


def measured(
    names: Iterable[str], model: CLIP, settings: Settings, repeats: int = 3
) -> Iterator[tuple[str, float]]:
    """Yield methods, and the time of a step with its views in units of CoOp's, both in turns.

    settings: batch and classes.
    """
    unit = _step(replace(settings, trainer=UNIT), model)
    for name in names:
        step = _step(replace(settings, trainer=name), model)
        if step is not None and unit is not None:
            calls = {"unit": unit, "own": step}
            times = timing.interleaved(calls, repeats, model.logit_scale.device)
            cuda = model.logit_scale.device.type == "cuda"
            own, unit_ = (times[key].wall if cuda else times[key].cpu for key in ("own", "unit"))
            yield name, round(own / unit_, 2)


def _step(settings: Settings, model: CLIP) -> Callable[[], torch.Tensor] | None:
    setup = MethodSetup(settings, model, fast=True)
    if not setup.trains:
        return None
    image = images(setup.batch, model)
    label = torch.arange(setup.batch, device=setup.device) % settings.classes

    def step() -> torch.Tensor:
        given, beside = setup.ahead(image)
        return setup.step(given, label, beside)

    return step


def machine() -> str:
    """What the costs are measured on."""
    threads = torch.get_num_threads()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on = "" if device.type == "cuda" else f", {threads} thread{'s' * (threads > 1)}"
    return f"{timing.device_name(device)}{on}, PyTorch {torch.__version__}"


def costs() -> dict[str, dict[str, float]]:
    """The measured costs: {machine: {method: ratio}}."""
    return read_json(COSTS, dict) if COSTS.is_file() else {}


def keep(found: dict[str, float]) -> None:
    """Put measured costs in place of those of before."""
    kept = {on: {n: v for n, v in of.items() if n not in found} for on, of in costs().items()}
    kept.setdefault(machine(), {}).update(found)
    write_json({on: dict(sorted(of.items())) for on, of in kept.items() if of}, COSTS)


# The page.


def row(name: str, counted: str, reach: str) -> list[str]:
    """A method's row."""
    known_, cost = plain(name), ""
    for number, of in enumerate(costs().values(), start=1):
        if name in of:
            cost = f"{of[name]:.2f}" + (f" ({number})" if len(costs()) > 1 else "")
    cells = [name, known_.paper, counted or "nothing", reach or "neither"]
    cells += [f"[{known_.sees}]" if known_.sees else "", known_.dept, cost, known_.command]
    return [c if i in (1, 7) else escape_markdown(c) for i, c in enumerate(cells)]


def table(rows: list[list[str]]) -> str:
    """The table, and what stands beneath it."""
    machines = [f"({i}) {on}" for i, on in enumerate(costs(), start=1)]
    on = machines if len(machines) > 1 else [f"Measured on: {on}" for on in costs()]
    notes = [*footnotes(SEES), *on]
    lines = "\n".join(f"- {escape_markdown(note)}" for note in notes)
    return f"{markdown_table([HEAD, *rows], len(HEAD))}\n\n{lines}"


def write(text: str) -> None:
    """Put a table into the page. Raises UserError if the page has no place for it."""
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{PAGE} has no lines {BEGIN!r} and {END!r}")
    with atomic_write(PAGE) as file:
        file.write(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options. Raises UserError for a method that isn't there."""
    parser = Parser(
        prog="methods.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measure", nargs="*", metavar="NAME", help="measure steps' costs, of all or of some"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="steps timed of each (3)")
    args = parser.parse_args(argv)
    for name in args.measure or ():
        if name not in methods():
            raise UserError(f"no method {name}{suggest(name, methods())}")
    return args


@user_errors()
def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    args = parse_args(argv)
    model = Settings(UNIT).model()
    if args.measure is not None:
        settings = Settings(UNIT, batch=BATCH, classes=CLASSES)
        names = [n for n in args.measure or methods() if not needs(n) + teacher_of(n)]
        for name, cost in measured(names, model, settings, args.repeats):
            print(f"{name}: {cost:.2f}", flush=True)
            keep({name: cost})
    rows = []
    for name in methods():
        if missing := needs(name):
            rows.append(row(name, f"not counted: needs {missing}", "not looked at"))
        else:
            reach = "not looked at" if teacher_of(name) else reached(name, model)
            rows.append(row(name, number_trained(name, model), reach))
        print(" | ".join(rows[-1][:6]), flush=True)
    write(table(rows))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Break one line at a time and see whether a test notices; print what survives.

    python tests/mutate.py --list
    python tests/mutate.py --sample 40 --seed 1
    python tests/mutate.py --files trainers/dept.py clip/prompting.py
    python tests/mutate.py --named

Breakages are made from the syntax tree (numbers, comparisons, signs, slices, dropped statements and
calls, swapped arguments, words) and from `named_breakages.py`, a list of those that matter most.
They are made in a temporary copy; the tree itself is left alone. For each, only the tests that are
likely to notice run, up to the first that fails. Exit status: 0 if all were noticed, else 1.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import difflib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

ROOT = Path(__file__).resolve().parents[1]

NO_TESTS = 5  # pytest's exit status if none is chosen

# What is broken, if nothing is said.
SCOPE = (
    *("trainers", "tuning", "clip/prompting", "datasets", "experiments/results"),
    *("experiments/protocols.py", "dassl/optim", "dassl/evaluation", "dassl/metrics"),
    *("dassl/data/transforms", "dassl/data/samplers.py"),
)
# The tests that are likely to notice, quick ones first: of the first pattern that matches the
# file. What isn't there is left out, so that files may move.
NUMBERS = ("tests/test_numbers_of_methods.py", "tests/trainers/test_parts_of_methods.py")
EQUATIONS = "tests/trainers/test_against_equations.py"
TRAINERS = (
    *("tests/trainers/test_dept.py", *NUMBERS, EQUATIONS, "tests/test_train.py"),
    "tests/trainers/test_contract.py",
)
TESTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"^tuning/(\w+)", ("tests/tuning/test_{}.py", *TRAINERS)),
    (r"^trainers/", TRAINERS),
    (r"^clip/", ("tests/clip/test_layout.py", "tests/clip", *NUMBERS, EQUATIONS)),
    (r"^mini_world/", ("tests/mini_world",)),
    (
        r"^datasets/preparation/(\w+)",
        (
            *("tests/datasets/preparation/test_{}.py", "tests/datasets/test_names_and_shares.py"),
            "tests/datasets/preparation",
        ),
    ),
    (
        r"^datasets/(\w+)",
        (
            *("tests/datasets/test_{}.py", "tests/datasets/test_names_and_shares.py"),
            *("tests/datasets/test_readers.py", "tests/datasets/test_fewshot.py"),
            *("tests/datasets/test_image_folder.py", "tests/datasets/preparation"),
        ),
    ),
    (r"^dassl/(data|optim|evaluation|metrics)/", ("tests/dassl/{}",)),
    (r"^dassl/", ("tests/dassl",)),
    (
        r"^experiments/results/",
        (
            *("tests/experiments/results/test_tables.py", "tests/experiments/results"),
            *("tests/experiments/test_protocols.py", "tests/test_numbers_of_methods.py"),
        ),
    ),
    (r"^experiments/(\w+)", ("tests/experiments/test_{}.py", *NUMBERS[:1])),
)


@dataclass(frozen=True)
class Mutant:
    """A file with one place changed. start, end: byte offsets of what `new` replaces."""

    file: str
    start: int
    end: int
    new: str
    kind: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]

    def line(self, source: bytes) -> int:
        return source.count(b"\n", 0, self.start) + 1

    def diff(self, source: bytes) -> str:
        before, after = (s.decode().splitlines() for s in (source, self.apply(source)))
        lines = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
        return "\n".join(line for line in lines if not line.startswith("@@"))


COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
}
# Calls that are left out, their first argument or their object staying …
DROPPED = {"unit", "normalize", "sorted", "reversed", "exp", "abs", "softmax", "log_softmax"}
# … or that become another.
OTHER_CALL = {"min": "max", "max": "min", "any": "all", "all": "any", "mean": "sum"}
# What only speaks to people: their words are not broken.
SPOKEN = {"print", "UserError", "suggest", "warn", "ValueError", "TypeError", "KeyError"}

# Arguments that guard, or are a matter of looks: with another value nothing that counts changes.
UNTOUCHED = {
    *(
        "strict",
        "encoding",
        "newline",
        "errors",
        "ensure_ascii",
        "indent",
        "non_blocking",
        "maxsize",
    ),
    *("color", "colors", "lw", "ms", "alpha", "fontsize", "linewidths", "elinewidth", "figsize"),
    *("rotation", "ha", "dpi"),
}


class Breaker(ast.NodeVisitor):
    """Collects the mutants of a file."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self.starts = starts
        self.mutants: list[Mutant] = []
        self.quiet = 0  # > 0: inside what only speaks

    def replace(self, node: ast.AST, new: str | ast.AST, kind: str) -> None:
        """One more mutant: `new` in place of a node."""
        if isinstance(new, ast.AST):
            new = f"({ast.unparse(ast.fix_missing_locations(new))})"
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        self.mutants.append(Mutant(self.file, start, end, new, kind))

    # What is left alone.

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Places inside an f-string are known from Python 3.12 on only, and most are messages."""

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in (*node.defaults, *filter(None, node.kw_defaults)):
            self.visit(default)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__repr__", "__str__"):
            return
        self.visit(node.args)
        for statement in node.body:
            self.visit(statement)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in UNTOUCHED:
            self.visit(node.value)

    # What is broken.

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace(node, str(not value), "flag")
        elif isinstance(value, int):
            self.replace(node, f"({value + 1})", "number")
        elif isinstance(value, float):
            self.replace(node, repr(2 * value or 1.0), "number")
        elif isinstance(value, str) and value and not self.quiet:
            words = value.split(" ")
            new = " ".join(words[1:]) if len(words) > 1 else value + "_"
            self.replace(node, repr(new), "word")

    def visit_Compare(self, node: ast.Compare) -> None:
        operators = [COMPARISONS[type(operator)]() for operator in node.ops]
        self.replace(node, ast.Compare(node.left, operators[:1] + node.ops[1:], node.comparators),
                     "comparison")  # fmt: skip
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(isinstance(side, (ast.JoinedStr, ast.List, ast.ListComp))
                   or (isinstance(side, ast.Constant) and isinstance(side.value, str))
                   for side in (node.left, node.right))  # fmt: skip
        other = ARITHMETIC.get(type(node.op))
        if other and not text:
            self.replace(node, ast.BinOp(node.left, other(), node.right), "sign")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.replace(node, node.operand, "negation")
        if not isinstance(node.operand, ast.Constant):
            self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.replace(node, ast.BoolOp(other, node.values), "and/or")
        self.generic_visit(node)

    def negate(self, test: ast.expr) -> None:
        if not isinstance(test, (ast.Compare, ast.UnaryOp)):  # those are broken themselves
            self.replace(test, ast.UnaryOp(ast.Not(), test), "condition")

    def visit_If(self, node: ast.If) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound and not isinstance(bound, ast.Constant):
                self.replace(bound, ast.BinOp(bound, ast.Add(), ast.Constant(1)), "bound")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if not (isinstance(node.value, ast.Call) and _name(node.value.func) in SPOKEN):
            self.replace(node, "pass", "dropped")
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.replace(node, "pass", "dropped")
        self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return
        if isinstance(node.targets[0], ast.Subscript):
            self.replace(node, "pass", "dropped")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        spoken = name in SPOKEN
        self.quiet += spoken
        if name in DROPPED:
            inner = node.args[0] if node.args else getattr(node.func, "value", None)
            if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value):
                inner = node.func.value
            if inner is not None:
                self.replace(node, inner, "dropped call")
        if name in OTHER_CALL:
            function = node.func
            if isinstance(function, ast.Name):
                other: ast.expr = ast.Name(OTHER_CALL[name])
            else:
                other = ast.Attribute(function.value, OTHER_CALL[name])
            self.replace(function, ast.unparse(other), "other call")
        plain = not any(isinstance(argument, ast.Starred) for argument in node.args)
        if plain and len(node.args) == 2 and not spoken and name not in OTHER_CALL:
            swapped = ast.Call(node.func, node.args[::-1], node.keywords)
            self.replace(node, swapped, "swapped")
        self.generic_visit(node)
        self.quiet -= spoken


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("F", "torch", "np", "math", "nn")


def mutants_of(root: Path, file: str) -> list[Mutant]:
    """All systematic breakages of a file that still parse and mean something else."""
    source = (root / file).read_bytes()
    breaker = Breaker(file, source)
    tree = ast.parse(source)
    breaker.visit(tree)
    kept, seen = [], {ast.dump(tree)}
    for mutant in breaker.mutants:
        try:
            meaning = ast.dump(ast.parse(mutant.apply(source)))
        except SyntaxError:
            continue
        if meaning not in seen:
            seen.add(meaning)
            kept.append(mutant)
    return kept


def named_mutants(root: Path, files: list[str]) -> Iterator[Mutant]:
    """The breakages of `named_breakages.py`, wherever their text stands in code."""
    sys.path.insert(0, str(Path(__file__).parent))
    from named_breakages import BREAKAGES

    sources = {file: (root / file).read_bytes() for file in files}
    meanings = {file: _meaning(source) for file, source in sources.items()}
    for what, old, new in BREAKAGES:
        places = [
            Mutant(file, match.start(), match.end(), new, what)
            for file, source in sources.items()
            for match in re.finditer(re.escape(old.encode()), source)
        ]
        changed = [m for m in places if _meaning(m.apply(sources[m.file])) != meanings[m.file]]
        if not changed:
            print(f"not found: {what}: {old}")
        yield from changed


def _meaning(source: bytes) -> str:
    """The syntax tree without the docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return ast.dump(tree)


def tests_for(root: Path, file: str) -> list[str]:
    """The tests that are likely to notice a breakage of this file."""
    for pattern, tests in TESTS:
        if match := re.search(pattern, file):
            paths = [test.format(*match.groups()) for test in tests]
            return [path for path in dict.fromkeys(paths) if (root / path).exists()]
    return ["tests"]


def survives(copy: Path, file: str, log: Path, limit: float) -> bool:
    """Whether all tests pass; those that are named after the file go first."""
    tests = tests_for(copy, file)
    named = Path(file).stem.replace("_", "")
    return runs_green(copy, ["-k", named, *tests], log, limit) and runs_green(
        copy, tests, log, limit
    )


def runs_green(copy: Path, tests: list[str], log: Path, limit: float) -> bool:
    """Run tests in a fork of this process, which has the heavy imports already."""
    child = os.fork()
    if child == 0:
        _run_tests(copy, tests, log)
    end = time.monotonic() + limit
    done = 0
    try:
        while not done and time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
    finally:
        if not done:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return bool(done) and os.waitstatus_to_exitcode(status) in (0, NO_TESTS)


def _run_tests(copy: Path, tests: list[str], log: Path) -> None:
    """In the child: run pytest and leave with its status."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if not p.startswith(str(ROOT / "tests")))]
    import pytest

    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--basetemp", f"{log}.tmp"]
    status = 1
    try:
        status = int(pytest.main([*options, "--rootdir", str(copy), *tests]))
    finally:
        sys.stdout.flush()
        os._exit(status)


def require_green(copy: Path, files: set[str], limit: float) -> None:
    """Exit if a test fails that nothing was broken for: all would seem to be noticed."""
    tests = sorted({test for file in files for test in tests_for(copy, file)})
    log = Path(f"{copy}.log")
    if not runs_green(copy, tests, log, 10 * limit):
        print(log.read_text()[-3000:])
        sys.exit(f"a test fails, or all take more than {10 * limit:.0f} s, with nothing broken")


def copy_tree(to: Path) -> None:
    """Copy what tests need, compiled so that an import looks at the content, not at the time."""
    skipped = shutil.ignore_patterns(".git", ".venv", "output", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, to, ignore=skipped, symlinks=True)
    compileall.compile_dir(to, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def warm_up() -> None:
    """Import what all children need, none of it ours."""
    sys.dont_write_bytecode = True
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import open_clip  # noqa: F401
    import pytest  # noqa: F401
    import scipy.io  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--files", nargs="+", default=SCOPE, help="files and folders to break")
    add("--sample", type=int, help="so many breakages, drawn from all")
    add("--seed", type=int, default=0, help="of the draw")
    add("--named", action="store_true", help="only those of named_breakages.py")
    add("--kinds", nargs="+", help="only these kinds")
    add("--jobs", type=int, default=1, help="at once")
    add("--limit", type=float, default=300, help="seconds for a breakage's tests")
    add("--list", action="store_true", help="print the breakages and stop")
    return parser.parse_args()


def chosen_mutants(args: argparse.Namespace) -> list[Mutant]:
    """The breakages of the command line, in the order of the files."""
    paths = [ROOT / file for file in args.files]
    found = sorted(
        {p for path in paths for p in ([path] if path.is_file() else path.rglob("*.py"))}
    )
    files = [str(path.relative_to(ROOT)) for path in found]
    if args.named:
        return list(named_mutants(ROOT, files))
    mutants = [mutant for file in files for mutant in mutants_of(ROOT, file)]
    if args.kinds:
        mutants = [mutant for mutant in mutants if mutant.kind in args.kinds]
    if args.sample and args.sample < len(mutants):
        drawn = random.Random(args.seed).sample(range(len(mutants)), args.sample)
        mutants = [mutants[i] for i in sorted(drawn)]
    return mutants


def try_all(mutants: list[Mutant], folder: Path, jobs: int, limit: float) -> list[Mutant]:
    """Break, test, mend; return the survivors."""
    copies = [folder / f"copy{i}" for i in range(jobs)]
    for copy in copies:
        copy_tree(copy)
    free = list(copies)
    survivors = []
    require_green(copies[0], {mutant.file for mutant in mutants}, limit)

    def attempt(mutant: Mutant) -> tuple[Mutant, bool, float]:
        copy = free.pop()
        started = time.monotonic()
        source = (copy / mutant.file).read_bytes()
        (copy / mutant.file).write_bytes(mutant.apply(source))
        try:
            green = survives(copy, mutant.file, Path(f"{copy}.log"), limit)
        finally:
            (copy / mutant.file).write_bytes(source)
            free.append(copy)
        return mutant, green, time.monotonic() - started

    with ThreadPoolExecutor(jobs) as pool:
        for i, (mutant, green, seconds) in enumerate(pool.map(attempt, mutants), start=1):
            source = (ROOT / mutant.file).read_bytes()
            where = f"{mutant.file}:{mutant.line(source)}"
            state = "SURVIVED" if green else "noticed"
            print(f"[{i}/{len(mutants)}] {where} {mutant.kind}: {state} ({seconds:.0f} s)")
            if green:
                survivors.append(mutant)
                print(mutant.diff(source))
            sys.stdout.flush()
    return survivors


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the copies go
    args = parse_args()
    mutants = chosen_mutants(args)
    if args.list:
        for mutant in mutants:
            source = (ROOT / mutant.file).read_bytes()
            print(f"{mutant.file}:{mutant.line(source)} {mutant.kind}\n{mutant.diff(source)}")
        print(f"{len(mutants)} breakages")
        return 0
    warm_up()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutate") as folder:
        survivors = try_all(mutants, Path(folder), args.jobs, args.limit)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(mutants)} breakages, {len(survivors)} unnoticed ({minutes:.0f} min)")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())

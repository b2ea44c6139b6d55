"""The places of a file that mutate.py breaks: from its syntax tree, and from a list by name."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from named_breakages import BREAKAGES


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

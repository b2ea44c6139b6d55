"""The picture in docs/architecture.md, drawn from the imports of the code itself.

python scripts/draw_architecture.py
python scripts/draw_architecture.py --out rooms.png
"""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.png"

# Rooms from the doors down. A file imports from its own room and from lower levels.
LEVELS = (
    ("train.py", "predict.py", "dept", "scripts"),
    ("benchmarks",),
    ("experiments",),
    ("trainers",),
    ("tuning", "mini_world"),
    ("clip", "datasets"),
    ("dassl",),
)
# Where a box stands from left to right, if not evenly spaced.
PLACES = {"train": 0.05, "predict": 0.16, "scripts": 0.85, "trainers": 0.5, "mini_world": 0.85}
# What imports upwards, or the folder it lies in, and why it may.
EXCEPTIONS = {
    ("experiments.warm", "train"): "a worker does what the door does, its start behind it",
    ("datasets.mini_world", "mini_world.data_sets"): "the embedded default registers its readers",
    ("trainers.dept", "trainers"): "a twin may be asked for before the folder was read",
    ("tuning.defaults", "trainers"): "a config's defaults are those of every method in the folder",
}


def python_files(root: Path = ROOT) -> dict[str, Path]:
    """Return {module: file} of every room: what the project is made of, without its tests."""
    files = [root / room for level in LEVELS for room in level if room.endswith(".py")]
    for level in LEVELS:
        for room in level:
            files += sorted((root / room).rglob("*.py"))
    return {_module(path.relative_to(root)): path for path in files}


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path = ROOT, deferred: bool = False) -> dict[str, set[str]]:
    """Return {module: the project's modules it imports}.

    Args:
        root: the project's folder.
        deferred: also what is imported inside functions, when they are called.
    """
    files = python_files(root)
    return {
        module: {
            found
            for name in _imported(path, module, deferred)
            if (found := _nearest(name, files)) not in (None, module)
        }
        for module, path in files.items()
    }


def _nearest(name: str, files: dict[str, Path]) -> str | None:
    """`a.b.c` is a module, or the name `c` in the module `a.b`."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def _imported(path: Path, module: str, deferred: bool) -> Iterator[str]:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), deferred):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _statements(tree: ast.AST, deferred: bool) -> Iterator[ast.AST]:
    """Yield what runs when the module is imported, and functions' bodies if `deferred`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue  # never run
        yield node
        if deferred or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _statements(node, deferred)


def level_of(module: str) -> int:
    """Return how far below the doors a module's room is."""
    room = module.partition(".")[0]
    return next(i for i, level in enumerate(LEVELS) if {room, f"{room}.py"} & set(level))


def upward(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports (from, to) into a level above, or another room beside."""
    return [
        (module, other)
        for module, others in graph.items()
        for other in sorted(others)
        if module.partition(".")[0] != other.partition(".")[0]
        and level_of(other) <= level_of(module)
    ]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return files that import each other in a circle, or []."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


# ------------------------------------------------------------ the picture


def room_imports(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return {room: the rooms it imports from}, without the exceptions."""
    rooms: dict[str, set[str]] = {}
    for module, others in graph.items():
        room = module.partition(".")[0]
        found = {o.partition(".")[0] for o in others if (module, o) not in EXCEPTIONS}
        rooms.setdefault(room, set()).update(found - {room})
    return rooms


def arrows(rooms: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yield what is drawn: the imports that no way through other rooms implies."""

    def below(room: str) -> set[str]:
        return rooms[room].union(*(below(lower) for lower in rooms[room]))

    for room, lowers in rooms.items():
        implied = set().union(*(below(lower) for lower in lowers))
        yield from ((room, lower) for lower in sorted(lowers - implied))


def draw(path: Path) -> None:
    """Write the picture: a box per room with its modules, an arrow to each room it imports from."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    graph = imports(deferred=True)
    figure, axes = plt.subplots(figsize=(9.5, 12))
    boxes = {}
    for row, level in enumerate(LEVELS):
        for column, room in enumerate(level):
            name = room.removesuffix(".py")
            modules = sorted({m.split(".")[1] for m in graph if m.startswith(f"{name}.")})
            title = [f"{name}/" if modules else room]
            boxes[name] = axes.text(
                *(PLACES.get(name, (column + 0.5) / len(level)), -row),
                "\n".join(title + textwrap.wrap(", ".join(modules), 88 // len(level))),
                ha="center",
                va="center",
                fontsize=8,
                bbox={"boxstyle": "round", "facecolor": "#eef3fa", "edgecolor": "#4a6a99"},
                zorder=3,
            )
    axes.set(xlim=(0, 1), ylim=(0.5 - len(LEVELS), 0.5))
    axes.axis("off")
    figure.canvas.draw()  # places the boxes, where arrows begin and end
    for upper, lower in arrows(room_imports(graph)):
        start, end = (boxes[room].get_bbox_patch().get_window_extent() for room in (upper, lower))
        ends = ((end.x0 + end.x1) / 2, end.y1), ((start.x0 + start.x1) / 2, start.y0)
        tip, tail = axes.transData.inverted().transform(ends)
        axes.annotate("", tip, tail, zorder=2, arrowprops={"arrowstyle": "-|>", "color": "#7a8699"})
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Draw the picture; exit status 1 if an import points up or files stand in a circle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PICTURE, help="a PNG file (the page's)")
    args = parser.parse_args(argv)
    graph = imports(deferred=True)
    wrong = [f"{a} imports {b}" for a, b in upward(graph) if (a, b) not in EXCEPTIONS]
    lowered = {m: {o for o in others if (m, o) not in EXCEPTIONS} for m, others in graph.items()}
    if found := circle(lowered):
        wrong.append("a circle: " + " -> ".join(found))
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    draw(args.out)
    print(f"{len(graph)} files, no import upwards, no circle: {args.out}")
    return 0

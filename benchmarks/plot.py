"""The ratios of a benchmark run as a picture."""

from __future__ import annotations

from typing import Any

SHOWN = {
    "step": "training step",
    "step_with_views": "… with its views",
    "evaluation": "evaluation",
    "evaluation_cached": "… image features at hand",
    "memory": "peak memory",
    "run": "mini run",
    "seeds": "three seeds together, not apart",
}


def draw(result: dict[str, Any], path: str) -> None:
    """One group of bars per method: plain over fast, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["rows"]
    ratio = {
        (name, j): row[name]["ratio"] for j, row in enumerate(rows) for name in SHOWN if name in row
    }
    ratio = {key: value for key, value in ratio.items() if value is not None}
    shown = {name: title for name, title in SHOWN.items() if any(name == key for key, _ in ratio)}
    figure, axes = plt.subplots(figsize=(7, 1 + 0.5 * len(rows)), layout="constrained")
    height = 0.8 / max(1, len(shown))
    for i, (name, title) in enumerate(shown.items()):
        mine = {j: value for (key, j), value in ratio.items() if key == name}
        axes.barh([j + i * height for j in mine], list(mine.values()), height, label=title)
    axes.set_yticks([j + 0.4 - height / 2 for j in range(len(rows))])
    axes.set_yticklabels([row["method"] for row in rows])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    where = result["circumstances"]
    axes.set_xlabel(f"plain path / fast path ({where['backbone']}, {where['device']})")
    if shown:
        axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)

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
}


def draw(result: dict[str, Any], path: str) -> None:
    """One group of bars per method: plain over fast, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["rows"]
    shown = {name: title for name, title in SHOWN.items() if any(name in row for row in rows)}
    figure, axes = plt.subplots(figsize=(7, 1 + 0.5 * len(rows)), layout="constrained")
    height = 0.8 / max(1, len(shown))
    for i, (name, title) in enumerate(shown.items()):
        places = [j + i * height for j, row in enumerate(rows) if name in row]
        ratios = [row[name]["ratio"] for row in rows if name in row]
        axes.barh(places, ratios, height, label=title)
    axes.set_yticks([j + 0.4 - height / 2 for j in range(len(rows))])
    axes.set_yticklabels([row["method"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    where = result["circumstances"]
    axes.set_xlabel(f"plain path / fast path ({where['backbone']}, {where['device']})")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)

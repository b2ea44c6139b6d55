"""What a report could show and doesn't, and the commands that make it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Container
from pathlib import Path

from experiments.results.analyses import CHANNELS, EMBEDDING
from experiments.results.scores import Score
from experiments.results.summary import Summary


def left_out(
    summary: Summary, shown: Container[str], folder: str | os.PathLike | None
) -> list[tuple[str, str]]:
    """Return why each kind of picture that isn't `shown`, by name, isn't, and what makes it.

    `folder` is the one of all runs, beneath which analyses are looked for.
    """
    score = _example(summary)
    run = shlex.quote(str(score.folder)) if score else "RUN"
    tested = shlex.quote(f"{score.folder}-tested") if score else "TESTED"
    out = shlex.quote(str(Path(folder or "output") / "analysis"))
    lines = {
        "validation": (
            "Validation curves: no run was tested on validation images after its epochs",
            "python scripts/run_protocol.py base_to_new --opts TEST.FINAL_MODEL best_val",
        ),
        "confusion": (
            "Confused classes, calibration: no run kept what became of its test images",
            f"python train.py --eval-only --model-dir {run} --output-dir {tested}",
        ),
        CHANNELS: (
            f"Channel importance: no {CHANNELS} in this folder",
            f"python scripts/analyze.py channel-importance {run} --out {out}",
        ),
        EMBEDDING: (
            f"t-SNE of features: no {EMBEDDING} in this folder",
            f"python scripts/analyze.py embedding {run} --out {out}",
        ),
    }
    return [line for name, line in lines.items() if name not in shown]


def _example(summary: Summary) -> Score | None:
    """Return the trained run with the highest accuracy on base classes, or on those it has."""
    trained = [
        score
        for score in summary.scores
        if (score.folder / "metrics.jsonl").is_file() and not summary.is_swept(score)
    ]
    return max(trained, key=lambda s: (s.classes == "base", s.accuracy), default=None)

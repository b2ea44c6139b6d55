"""`experiments.slurm_task`, for which a run is complete whose result says "ours"."""

import json
import sys
import types
from pathlib import Path


def is_done(arguments: tuple[str, ...]) -> bool:
    return json.loads((Path(arguments[0]) / "result.json").read_text())["run"] == "ours"


if __name__ == "__main__":
    sys.modules["tuning.run"] = types.SimpleNamespace(is_done=is_done)
    from experiments.slurm_task import main

    sys.exit(main())

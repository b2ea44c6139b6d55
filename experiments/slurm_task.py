"""What a task of a Slurm job array does: its chains, as a machine of its own would.

    python -m experiments.slurm_task OUTPUT/slurm/NUMBER TASK      as slurm_records.py's script does

One that Slurm starts again, after a preemption or the end of its node, goes on where its runs are.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from dassl.utils import GOES_ON, heed_signals, user_errors
from experiments.chains import Chain
from experiments.runner import Outcome, local_slots, run_local
from experiments.slurm_records import DONE, read_task, settings_of, write_outcomes
from experiments.watching.records import Recorder


def slots(how: dict[str, Any]) -> list[dict[str, str]]:
    """One per GPU place that the job has; without GPUs one that has all of the job's cores."""
    gpus = 0
    if how["gpus"]:
        import torch

        gpus = torch.cuda.device_count()
        if not gpus:
            print(f"the job asked for {how['gpus']} GPUs, and PyTorch sees none here", flush=True)
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0) or len(os.sched_getaffinity(0))
    return local_slots(gpus, how["per_gpu"], how["jobs"] or (0 if gpus else 1), cores)


def carry_out(folder: Path, index: int) -> int:
    """Do a task; return the exit status."""
    chains, how = read_task(folder, index)
    known: list[Outcome] = []
    write_outcomes(folder, index, known)  # not what it said before Slurm started it again

    def report(chain: Chain, outcomes: list[Outcome]) -> None:
        known.extend(outcomes)
        write_outcomes(folder, index, known)
        told = (
            f"{o.accuracy:.2f}" if o.accuracy is not None else f"{o.state.upper()}: {o.reason}"
            for o in outcomes
        )
        print(f"{chain.name}: {', '.join(told)}", flush=True)

    settings, places = settings_of(how), slots(how)
    with ExitStack() as stack:
        watcher = None
        if settings.plan:
            watcher = stack.enter_context(closing(Recorder(settings.plan, len(places))))
        run_local(chains, settings, places, report, watcher)
    return 0 if all(outcome.state in DONE for outcome in known) else 1


def main() -> int:
    """Do what the command line says."""
    heed_signals()
    with user_errors(f"interrupted; {GOES_ON}"):
        return carry_out(Path(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())

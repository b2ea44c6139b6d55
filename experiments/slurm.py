"""Carry out a plan as Slurm jobs, each of one chain or several."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from dassl.utils import UserError
from experiments.chains import Chain
from experiments.protocols import ROOT
from experiments.runner import Outcome, Report, RunnerSettings, is_complete, outcome_of, run_waiting


def run_slurm(
    chains: list[Chain],
    settings: RunnerSettings,
    logs: Path,
    parameters: dict,
    report: Report,
    per_job: int = 1,
) -> None:
    """Give the chains to Slurm, `per_job` at most in a job, and wait for all of them.

    Raises UserError if submitit or Slurm is missing. Jobs go on if this process is interrupted; the
    same command later takes up what they have done.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--cluster slurm needs submitit: pip install submitit") from None
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    try:
        executor = submitit.AutoExecutor(folder=logs / "%j", cluster="slurm")
        executor.update_parameters(name="dept", **parameters)
        with executor.batch():
            groups = [chains[i : i + per_job] for i in range(0, len(chains), per_job)]
            jobs = [executor.submit(run_in_turn, group, settings) for group in groups]
    except (RuntimeError, ValueError, submitit.core.utils.UncompletedJobError) as error:
        raise UserError(f"Slurm did not take the jobs: {error}") from None
    print(f"submitted {len(jobs)} Slurm jobs, {jobs[0].job_id} …; their logs: {logs}", flush=True)
    waiting = dict(zip(jobs, groups, strict=True))
    while waiting:
        for job, group in list(waiting.items()):
            if not job.done():
                continue
            del waiting[job]
            error = job.exception()
            told = job.result() if error is None else [_left(job, error, each) for each in group]
            for chain, outcomes in zip(group, told, strict=True):
                report(chain, outcomes)
        time.sleep(2 if waiting else 0)


def run_in_turn(chains: list[Chain], settings: RunnerSettings) -> list[list[Outcome]]:
    """Run chains one after the other, alone; each one's outcomes."""
    return [run_waiting(chain, settings, {}) for chain in chains]


def _left(job: Any, error: Exception, chain: Chain) -> list[Outcome]:
    """What the folders of a chain say whose Slurm job died."""
    reason = f"Slurm job {job.job_id} ({job.state}): {str(error).strip().splitlines()[-1]}"
    return [
        outcome_of(each, "done")
        if is_complete(each)
        else Outcome(each, "failed", reason=reason, status=1)
        for each in chain.jobs
    ]

"""Carry out a plan as Slurm jobs, one per chain."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dassl.utils import UserError
from experiments.chains import Chain
from experiments.protocols import ROOT
from experiments.runner import Outcome, Report, RunnerSettings, is_complete, outcome_of, run_waiting


def run_slurm(
    chains: list[Chain], settings: RunnerSettings, logs: Path, parameters: dict, report: Report
) -> None:
    """Give each chain to Slurm as a job, and wait for all of them.

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
            jobs = [executor.submit(run_waiting, chain, settings, {}) for chain in chains]
    except (RuntimeError, ValueError, submitit.core.utils.UncompletedJobError) as error:
        raise UserError(f"Slurm did not take the jobs: {error}") from None
    print(f"submitted {len(jobs)} Slurm jobs, {jobs[0].job_id} …; their logs: {logs}", flush=True)
    waiting = dict(zip(jobs, chains, strict=True))
    while waiting:
        for job, chain in list(waiting.items()):
            if not job.done():
                continue
            del waiting[job]
            report(chain, _slurm_outcomes(job, chain))
        time.sleep(2 if waiting else 0)


def _slurm_outcomes(job: object, chain: Chain) -> list[Outcome]:
    """Return what a Slurm job says of its runs; if it died, what their folders say."""
    error = job.exception()
    if error is None:
        return job.result()
    reason = f"Slurm job {job.job_id} ({job.state}): {str(error).strip().splitlines()[-1]}"
    return [
        outcome_of(each, "done")
        if is_complete(each)
        else Outcome(each, "failed", reason=reason, status=1)
        for each in chain.jobs
    ]

"""Chains as Slurm jobs, with a stand-in for submitit that runs them at once."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from experiments import slurm
from experiments.chains import Chain, Job
from experiments.processes import RunnerSettings
from experiments.runner import Outcome


class Submitted:
    """A job that is done; with a chain "dies" in it, a dead one."""

    job_id, state = 7, "NODE_FAIL"

    def __init__(self, function, chains: list[Chain], settings: RunnerSettings) -> None:
        self.names = [chain.name for chain in chains]
        self.dead = "dies" in self.names
        self.outcomes = None if self.dead else function(chains, settings)

    def done(self) -> bool:
        return True

    def exception(self) -> Exception | None:
        return RuntimeError("the node\nis gone") if self.dead else None

    def result(self) -> list[list[Outcome]]:
        return self.outcomes


class Executor:
    """Gathers the jobs."""

    jobs: list[Submitted] = []

    def __init__(self, folder: Path, cluster: str) -> None:
        Executor.jobs = []

    def update_parameters(self, **parameters: object) -> None:
        assert parameters["slurm_partition"] == "gpu"

    @contextmanager
    def batch(self):
        yield

    def submit(self, *call) -> Submitted:
        Executor.jobs.append(Submitted(*call))
        return Executor.jobs[-1]


def test_a_job_takes_several_chains(tmp_path, monkeypatch):
    errors = SimpleNamespace(UncompletedJobError=type("UncompletedJobError", (Exception,), {}))
    stand_in = SimpleNamespace(
        AutoExecutor=Executor, core=SimpleNamespace(utils=errors), __name__="submitit"
    )
    monkeypatch.setitem(sys.modules, "submitit", stand_in)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr("tuning.run.is_done", lambda arguments: True)
    run = lambda chain, settings, slot: [Outcome(job, "done", 1.0) for job in chain.jobs]  # noqa: E731
    monkeypatch.setattr(slurm, "run_waiting", run)
    chains = [Chain(name, (Job(tmp_path / name, ()),)) for name in ("a", "b", "c", "left", "dies")]
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "result.json").write_text(json.dumps({"accuracy": 50.0}))
    seen = {}

    def report(chain, outcomes):
        seen[chain.name] = [outcome.state for outcome in outcomes]

    parameters = {"slurm_partition": "gpu"}
    slurm.run_slurm(chains, RunnerSettings(), tmp_path, parameters, report, per_job=3)
    assert [job.names for job in Executor.jobs] == [["a", "b", "c"], ["left", "dies"]]
    done = {name: ["done"] for name in ("a", "b", "c", "left")}
    assert seen == {**done, "dies": ["failed"]}

"""What a protocol shows while it runs: what it will do, how far it is, what failed."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.chains import Chain, Job
from experiments.processes import Watcher
from experiments.runner import USER_ERROR, Outcome, has_result
from experiments.watching.epochs import Epochs, epochs_kept, read_epochs
from experiments.watching.lines import duration, is_live, say, told_to_go
from experiments.watching.standing import DONE, FAILED, LEFT, RUNNING, WAITING, Run, Standing

LATER = {"done": DONE, "skipped": DONE, "failed": FAILED, "left out": LEFT}


class PlanProgress(Watcher):
    """Takes in what becomes of a plan: prints a line per finished chain, the failures at the end.

    Args:
        chains: the plan's.
        width: how many go at once.
        title: of the plan.
        output: what folders are told relative to.
        recorder: is told it too, for those who watch from elsewhere.
    """

    def __init__(
        self,
        chains: Sequence[Chain],
        width: int,
        title: str = "",
        output: Path = Path(),
        recorder: Watcher | None = None,
    ) -> None:
        self.total, self.width, self.title = len(chains), width, title
        self.finished, self.started = 0, time.monotonic()
        self.outcomes: list[Outcome] = []
        self._recorder = recorder or Watcher()
        self._lock = threading.Lock()
        self._jobs = {job.folder: (chain.name, job) for chain in chains for job in chain.jobs}
        self._names = {
            folder: Path(os.path.relpath(folder, output)).as_posix() for folder in self._jobs
        }
        self._begun: dict[Path, tuple[float, int, int]] = {}  # when, with how many, epochs before
        self._ended: dict[Path, Run] = {}

    def begins(self, jobs: Sequence[Job]) -> None:
        """Take in that runs begin, side by side."""
        now = time.time()
        with self._lock:
            for job in jobs:
                before = 0 if job.model else epochs_kept(job.folder)
                self._begun[job.folder] = now, len(jobs), before
        self._recorder.begins(jobs)

    def ends(self, outcome: Outcome) -> None:
        """Take in what became of a run."""
        self._end(outcome)
        self._recorder.ends(outcome)

    def report(self, chain: Chain, outcomes: list[Outcome]) -> None:
        """Take in what became of a chain."""
        for outcome in outcomes:
            self._end(outcome)
        self.finished += 1
        self.outcomes += outcomes
        seconds = sum(outcome.seconds for outcome in outcomes)
        results = ", ".join(
            f"{o.accuracy:.2f}" if o.accuracy is not None else o.state.upper() for o in outcomes
        )
        skipped = all(o.state == "skipped" for o in outcomes)
        spent = "was complete" if skipped else duration(seconds)
        to_go = told_to_go(*self.standing().to_go()) if self.finished < self.total else ""
        say(f"[{self.finished}/{self.total}] {chain.name}: {results} ({spent}){to_go}")

    def close(self) -> int:
        """Print the end of it; return the exit status."""
        counts = {
            state: sum(o.state == state for o in self.outcomes)
            for state in ("done", "skipped", "failed", "left out")
        }
        told = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        say(f"{told} in {duration(time.monotonic() - self.started)}")
        failures = [o for o in self.outcomes if o.state in ("failed", "left out")]
        for outcome in failures:
            line = f"{outcome.state}: {outcome.job.folder}: {outcome.reason}"
            if sys.stderr.isatty():
                say(line, sys.stderr)
            else:
                print(line, file=sys.stderr)
        if not failures:
            return 0
        mistakes = all(o.status == USER_ERROR for o in self.outcomes if o.state != "left out")
        return USER_ERROR if mistakes else 1

    def standing(self) -> Standing:
        """How far the plan is, as this process knows it."""
        with self._lock:
            begun, ended = dict(self._begun), dict(self._ended)
        runs = [
            ended.get(folder) or self._run(chain, job, begun.get(folder))
            for folder, (chain, job) in self._jobs.items()
        ]
        return Standing(self.title, "", runs, [], time.time(), at_once=self.width)

    def _end(self, outcome: Outcome) -> None:
        job, state = outcome.job, LATER[outcome.state]
        chain, _ = self._jobs[job.folder]
        timed = outcome.state == "done"
        run = Run(
            self._names[job.folder],
            chain,
            state,
            job.model is not None,
            outcome.accuracy,
            outcome.seconds if timed else None,
            before=self._begun.get(job.folder, (0.0, 1, 0))[2],
            epochs=read_epochs(job.folder) if timed and job.model is None else Epochs(),
            reason=outcome.reason,
        )
        with self._lock:
            self._ended[job.folder] = run

    def _run(self, chain: str, job: Job, begun: tuple[float, int, int] | None) -> Run:
        """How far one is that has no outcome yet."""
        name, tests = self._names[job.folder], job.model is not None
        if begun is None:
            return Run(name, chain, WAITING, tests)
        epochs = Epochs() if tests else read_epochs(job.folder)
        since, together, before = begun
        return Run(
            name,
            chain,
            RUNNING,
            tests,
            since=since,
            together=together,
            before=before,
            epochs=epochs,
        )


def introduce(title: str, chains: Sequence[Chain], output: Path) -> None:
    """Print what a plan will do, and where it is to be seen."""
    jobs = [job for chain in chains for job in chain.jobs]
    tests = sum(job.model is not None for job in jobs)
    there = sum(map(has_result, jobs))
    say(f"{title}: {len(jobs)} runs, {len(jobs) - tests} that train and {tests} that test a model")
    if there:
        say(f"  {there} of them have a result already")
    if jobs:
        first = os.path.relpath(jobs[0].folder, output)
        say(f"  logs: {output}/<run>/log.txt and console.txt; the first <run> is")
        say(f"    {first}")
    say("  to watch from elsewhere:")
    print(f"    python scripts/status.py {shlex.quote(str(output))} --watch", flush=True)  # whole


@contextmanager
def watched(standing: Callable[[], Standing], wanted: bool, every: float = 0.5) -> Iterator[None]:
    """Show how far a plan is while the block lasts, if it is wanted and there is a terminal for it.

    What is printed meanwhile stands above.
    """
    if not wanted or not is_live(sys.stdout):
        yield
        return
    from experiments.watching.view import live_view

    with live_view(lambda: [standing()], every):
        yield

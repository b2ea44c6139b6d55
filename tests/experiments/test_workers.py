"""Runs in workers, real ones: what they leave is what a process of their own leaves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from experiments.chains import Chain, Job
from experiments.launch import WARM
from experiments.messages import receive, send
from experiments.processes import Processes, RunnerSettings
from experiments.runner import run_chain
from experiments.workers import Workers
from tests.conftest import arguments
from tests.soak_runs import outcome as left
from tests.soak_runs import same

ROOT = Path(__file__).resolve().parents[2]
TWO = {"OMP_NUM_THREADS": "2"}


def chain(folder: Path, root: Path, backbone: Path) -> Chain:
    """Two seeds side by side, then their tests on the new classes."""

    def words(output: Path, seed: int, *extra: str, **options) -> tuple[str, ...]:
        options = {"SEED": seed, "OPTIM.MAX_EPOCH": 2, **options}
        return tuple(arguments("DePT_CoOp", root, backbone, output, *extra, **options))

    models = [
        Job(
            folder / f"train{seed}",
            words(folder / f"train{seed}", seed, **{"DATASET.SUBSAMPLE_CLASSES": "base"}),
        )
        for seed in (1, 2)
    ]
    new = {"DATASET.SUBSAMPLE_CLASSES": "new"}
    tests = [
        Job(
            folder / f"test{seed}",
            words(
                folder / f"test{seed}", seed, "--eval-only", "--model-dir", str(model.folder), **new
            ),
            model.folder,
        )
        for seed, model in enumerate(models, 1)
    ]
    return Chain("chain", (*models, *tests))


def test_a_worker_leaves_what_a_process_leaves(tmp_path, picture_root, backbone):
    settings = RunnerSettings(warm=WARM)
    found = []
    for name, kind in (("alone", Processes()), ("worker", Workers(settings, TWO))):
        with closing(kind) as processes:
            jobs = chain(tmp_path / name, picture_root, backbone)
            outcomes = run_chain(jobs, settings, TWO, processes)
            assert [o.state for o in outcomes] == ["done"] * 4, outcomes
        folder = tmp_path / name
        files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        logs = [
            (job.folder / "log.txt").read_text().replace(f"/{name}/", "/") for job in jobs.jobs[2:]
        ]
        found.append(
            {
                "outcomes": [left(job.folder) for job in jobs.jobs],
                "files": {path for path in files if "events" not in path.name},
                "logs": [[x for x in log.splitlines() if "features" not in x] for log in logs],
            }
        )
    alone, worker = found
    assert same(alone["outcomes"], worker["outcomes"])
    assert alone["files"] == worker["files"] and alone["logs"] == worker["logs"]


def test_a_worker_has_its_threads():
    """As many as a process of its own, also the second one, and they compute the same."""
    environment = {**os.environ, **TWO}
    command = [sys.executable, "-m", "tests.experiments.thread_worker"]
    alone = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert alone.stdout.startswith("threads 2 "), alone.stderr
    settings = RunnerSettings(warm=(*command, "serve"))
    for _ in range(2):
        with closing(Workers(settings, TWO)) as workers:
            workers.prepare()
            for _ in range(2):
                process = workers.begin([], settings, {}, [])
                assert b"".join(process.stdout).decode() == alone.stdout
                assert process.wait() == 0
                workers.end_chain({})
                workers.prepare()


def test_messages_carry_files(tmp_path):
    one, other = socket.socketpair()
    files = [os.open(tmp_path / str(i), os.O_RDWR | os.O_CREAT) for i in range(120)]
    send(one, {"words": ["ä" * 5000]}, files)
    message, arrived = receive(other)
    assert message == {"words": ["ä" * 5000]}
    for i, file in enumerate(arrived):
        os.write(file, str(i).encode())
        assert (tmp_path / str(i)).read_text() == str(i)
    for file in (*files, *arrived):
        os.close(file)
    one.sendall(b"\0\0\0\5\0")  # killed in the middle of one
    one.close()
    assert receive(other) is None
    other.close()

"""A plan on a real Slurm of one machine, where its programs are installed (Debian: slurm-wlm)."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments import slurm, slurm_client, slurm_waiting
from experiments.results.configs import ROOT
from tests.experiments.fake_task import is_done
from tests.experiments.test_slurm import PYTHON, Place, printed

PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
PLACES = f"{os.environ['PATH']}:/usr/sbin:/sbin"
missing = [name for name in PROGRAMS if not shutil.which(name, path=PLACES)]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd has to run as root"),
]
CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=1,batch_sched_delay=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=20
MaxArraySize=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def until(is_so: Callable[[], object], what: str, seconds: float = 60) -> None:
    for _ in range(int(seconds / 0.1)):
        if is_so():
            return
        time.sleep(0.1)
    pytest.fail(f"waited in vain: {what}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A munged, a slurmctld and a slurmd of our own. A short path: sockets lie there."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(secrets.token_bytes(1024))
    (folder / "key").chmod(0o600)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    host = socket.gethostname().partition(".")[0]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, ports=ports))
    munge = {"key-file": "key", "socket": "munge.socket", "pid-file": "pid"}
    munge |= {"seed-file": "seed", "log-file": "munge.log"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        patch.setenv("PATH", PLACES)
        options = [f"--{option}={folder / name}" for option, name in munge.items()]
        commands = [["munged", "--foreground", "--force", *options], ["slurmctld", "-D"]]
        processes = []
        with open(folder / "log", "wb") as log:
            for command in [*commands, ["slurmd", "-D"]]:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
                if command[0] == "munged":
                    until((folder / "munge.socket").exists, "munge")
            idle = ["sinfo", "--noheader", "--format=%T"]
            told = (folder / "log").read_text
            try:
                until(lambda: b"idle" in subprocess.run(idle, capture_output=True).stdout, told())
                yield folder
                subprocess.run(["scancel", "--user=root"], check=True)
            finally:
                for process in reversed(processes):
                    process.send_signal(signal.SIGTERM)
                    process.wait()
    shutil.rmtree(folder)


@pytest.fixture
def place(cluster, tmp_path, monkeypatch) -> Place:
    monkeypatch.setattr("tuning.run.is_done", is_done)
    monkeypatch.setattr(slurm_waiting, "LAST", 1.0)
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=shlex.quote(sys.executable)))
    python.chmod(0o755)
    monkeypatch.setattr(slurm.sys, "executable", str(python))
    return Place(tmp_path / "o'dd $HOME %a\"", tmp_path, python)


def test_arrays_are_submitted_once(place, capsys):
    """More chains than an array has tasks; the name of the folder is an odd one."""
    chains = [place.chain(name) for name in "abcdefg"]
    wanted = {chain.name: ["done"] * 2 for chain in chains}
    assert place.states(chains, at_once=2, cpus=1, minutes=9) == wanted
    told = printed(capsys)
    assert "5 tasks at most: 2 chains in each" in told and "each has no GPU" in told
    assert place.states(chains) == {name: ["skipped"] * 2 for name in wanted}
    assert "submitted" not in printed(capsys)
    starts = [(job.folder / "starts").read_text() for chain in chains for job in chain.jobs]
    assert starts == ["started\n"] * 14
    assert (place.folder / "slurm/0001/3.log").read_text() == "g: 50.00, 50.00\n"


def test_what_can_not_start_is_said(place, capsys):
    chains = [place.chain(name) for name in "ab"]
    plan = place.submit(chains, cpus=1, minutes=61)
    until(lambda: "PartitionTimeLimit" in told(chains, plan, capsys), "the reason", 30)
    with place.plan(chains) as again:
        assert list(again.queued) == chains
    subprocess.run(["scancel", *plan.jobs], check=True)
    assert place.states(chains, cpus=1, minutes=9) == {name: ["done"] * 2 for name in "ab"}
    assert "2 tasks left runs without a result (CANCELLED)" in printed(capsys)


def told(chains, plan, capsys) -> str:
    slurm_waiting.Waiting(plan.queued).look()
    return printed(capsys)


def test_real_runs_and_their_end(cluster, tmp_path):
    """Detached, found again, complete; one that is taken back saves what it has."""
    output = tmp_path / "output"

    def command(epochs: int, *words: str) -> subprocess.CompletedProcess[str]:
        common = "scripts/run_protocol.py base_to_new --trainers CoOp --datasets mini_shapes"
        common += f" --seeds 1-2 --shots 1 --root {tmp_path / 'data'} --output {output}"
        common += " --cluster slurm --cpus-per-job 1 --time 30"
        run = [sys.executable, *common.split(), *words, "--opts", "OPTIM.MAX_EPOCH", str(epochs)]
        return subprocess.run(run, cwd=ROOT, text=True, capture_output=True)

    assert "submitted Slurm job" in command(1, "--detach").stdout
    again = command(1)
    assert again.returncode == 0, again
    assert "nothing to submit" in " ".join(again.stdout.split()) and "submitted" not in again.stdout
    assert "Base to new, 1 shot" in again.stdout  # the table
    complete = command(1)
    assert complete.stdout.endswith("4 skipped in 0 s\n") and "submitted" not in complete.stdout
    assert "submitted Slurm job" in command(10_000, "--detach").stdout
    until(lambda: list(output.rglob("*=10000/seed2/metrics.jsonl")), "the training")
    job = (output / "slurm/0002/id").read_text().strip()
    subprocess.run(["scancel", job], check=True)
    until(lambda: slurm_client.states([(job, 0)])[job, 0].ended, "the end")
    assert len(list(output.rglob("*=10000/seed?/resume.pth.tar"))) == 2
    log = (output / "slurm/0002/0.log").read_text()
    assert "terminated; the same command goes on from here" in log

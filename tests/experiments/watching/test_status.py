"""scripts/status.py: what it prints, when it ends, and the page that it serves."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from html import unescape
from http.client import HTTPConnection
from pathlib import Path

import pytest

from dassl.utils import UserError
from experiments.chains import Chain, Job
from experiments.runner import Outcome
from experiments.watching import command
from experiments.watching.page import make_server, page, serve
from experiments.watching.records import Recorder, write_plan

PLACE = "base2new/train_base/{}/shots_16/CoOp/mini/seed1"
NAMES = ("done", "failed", "going", "<b>&amp;")


@pytest.fixture
def jobs(tmp_path) -> list[Job]:
    return [Job(tmp_path / "out" / PLACE.format(name), ()) for name in NAMES]


@pytest.fixture
def plan(tmp_path, jobs) -> Path:
    chains = [Chain(f"CoOp {name}", (job,)) for name, job in zip(NAMES, jobs, strict=True)]
    return write_plan(tmp_path / "out", "base_to_new", ["base_to_new", "--jobs", "2"], chains)


@pytest.fixture
def recorder(plan, jobs):
    """One complete, one failed, one in its third of ten epochs, one to come."""
    recorder = Recorder(plan, 2)
    finish(jobs[0], 81.25)
    recorder.ends(Outcome(jobs[0], "done", 20.0, accuracy=81.25))
    recorder.ends(Outcome(jobs[1], "failed", 1.0, "RuntimeError: <script>no luck</script>"))
    recorder.begins([jobs[2]])
    jobs[2].folder.mkdir(parents=True)
    (jobs[2].folder / "metrics.jsonl").write_text('{"epoch": 3, "loss": 1.5}\n')
    (jobs[2].folder / "config.yaml").write_text("OPTIM: {MAX_EPOCH: 10}\n")
    yield recorder
    recorder.close()


def finish(job: Job, accuracy: float) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "result.json").write_text(json.dumps({"accuracy": accuracy}))


def test_it_prints_how_far_a_plan_is(recorder, tmp_path, capsys):
    assert command.main([str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    told = " ".join(out.split())  # lines are folded
    assert told.startswith("base_to_new: 1 of 4 runs complete, 1 under way, 1 failed, 1 to come; ")
    assert "CoOp train_base" in out and "81.25" in out and "3/10" in out
    assert "RuntimeError: <script>no luck</script>" in out and "1 process at it" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "run_protocol.py" not in out
    recorder.close()
    assert command.main([str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert "1 stopped" in out and "nobody is at it; the same command goes on from here:" in out
    assert "\n  python scripts/run_protocol.py base_to_new --jobs 2\n" in out
    assert "python scripts/run_protocol.py base_to_new --jobs 2" in page(tmp_path / "out", 2)[0]
    (tmp_path / "out" / "slurm").mkdir()
    command.main([str(tmp_path / "out")])
    assert "nobody is at it, but jobs may be queued (squeue --me);" in capsys.readouterr().out


def test_nothing_is_written(recorder, tmp_path):
    recorder.close()
    seen = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    command.main([str(tmp_path / "out")])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == seen


def test_the_exit_status_says_whether_a_run_failed(recorder, jobs, tmp_path, capsys):
    finish(jobs[1], 50.0)
    assert command.main([str(tmp_path / "out")]) == 0


def test_json_has_every_run(recorder, tmp_path, capsys):
    assert command.main([str(tmp_path / "out"), "--json"]) == 1
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert plan["states"] == {
        "complete": 1,
        "under way": 1,
        "failed": 1,
        "left out": 0,
        "stopped": 0,
        "to come": 1,
    }
    assert [run["state"] for run in plan["runs"]] == ["complete", "failed", "under way", "to come"]
    assert plan["runs"][0]["accuracy"] == 81.25 and plan["under_way"][0]["epoch"] == 3
    assert plan["kinds"][0]["seconds_each"] == 20.0 and plan["to_go"]["seconds"] >= 20.0


def test_watch_tells_what_changes_until_all_is_over(recorder, jobs, tmp_path, capsys, monkeypatch):
    def sleep(seconds):
        for job in jobs[1:]:
            finish(job, 50.0)

    monkeypatch.setattr(time, "sleep", sleep)
    assert command.main([str(tmp_path / "out"), "--watch"]) == 0
    *_, last = out = capsys.readouterr().out.splitlines()
    assert " base_to_new: 1 of 4 runs complete, 1 under way, 1 failed, 1 to" in out[0]
    assert last.split(" ", 1)[1] == "base_to_new: 4 of 4 runs complete"


@contextmanager
def served(output: Path):
    server = make_server(output, 0, 2)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(server, path: str, host: str = "", method: str = "GET"):
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path, skip_host=bool(host))
    if host:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def test_the_page_says_it_and_escapes_names(recorder, tmp_path):
    with served(tmp_path / "out") as server:
        assert server.server_address[0] == "127.0.0.1"
        answer, text = get(server, "/")
        plans = json.loads(get(server, "/status.json")[1])["plans"]
        assert get(server, "/", method="HEAD")[1] == ""
    assert answer.status == 200 and answer.getheader("Content-Type") == "text/html; charset=utf-8"
    assert "1 of 4 runs complete, 1 under way, 1 failed, 1 to come" in text
    assert "81.25" in text and "3/10" in text and 'data-every="2"' in text
    assert "<script>no luck" not in text and "RuntimeError: <script>no luck" in unescape(text)
    assert plans[0]["states"]["complete"] == 1
    addresses = {word.split('"')[1] for word in text.split() if word.startswith(("href=", "src="))}
    assert addresses == {"/status.json"}  # nothing comes from anywhere else
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


@pytest.mark.parametrize(
    "path",
    [
        "/plans",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/status.json/..",
        "/?x",
        "http://127.0.0.1/x",
    ],
)
def test_no_other_address_has_anything(recorder, tmp_path, path):
    with served(tmp_path / "out") as server:
        answer, text = get(server, path)
    assert answer.status == 404 and text == "there are / and /status.json\n"


def test_by_another_sites_name_nothing_is_served(recorder, tmp_path):
    with served(tmp_path / "out") as server:
        assert get(server, "/", host="evil.example:80")[0].status == 403
        assert get(server, "/", host="localhost:9")[0].status == 200
        assert get(server, "/", host="localhost")[0].status == 200


def test_the_page_of_a_folder_that_went_away_says_so(tmp_path):
    assert "no such folder" in page(tmp_path / "gone", 2)[0]


def test_a_port_that_is_taken_is_one_line(tmp_path):
    with served(tmp_path) as server, pytest.raises(UserError, match="--serve PORT takes another"):
        serve(tmp_path, server.server_port, 2)

"""Every door, mistyped: one line on stderr, exit status 2, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from dassl.config import get_cfg_default
from dassl.config.constraints import CHECKS
from dassl.utils import Terminated, user_errors
from experiments import analysis_command as analysis
from experiments import export_command as export
from experiments import launch
from experiments import preparation_command as preparation
from experiments.results import command as results
from experiments.watching import command as status
from tests.experiments.fake_runs import add_pair
from tuning import prediction

REPO = Path(__file__).parents[1]
SCRIPTS = (REPO / "scripts").glob("*.py")
DOORS = {
    "train": train.main,
    "predict": prediction.main,
    "run_protocol": launch.main,
    "parse_results": results.main,
    "analyze": analysis.main,
    "export": export.main,
    "prepare_data": preparation.main,
    "status": status.main,
}
RUN = "base_to_new --trainers CoOp --datasets dtd --dry-run "
MISTAKES = [
    ("train", "", "TRAINER.NAME is not set"),
    ("train", "--seed 1 1", "several seeds must differ"),
    ("train", "--seed 1.5", "no whole number"),
    ("train", "--load-epoch x", "--load-epoch"),
    ("train", "--config-file {dir}", "is a folder"),
    ("train", "--config-file {dir}/absent.yaml", "no such config file"),
    ("train", "--resume {dir}/absent --seed", "--seed"),
    ("train", "OPTIM.LR", "come in pairs"),
    ("train", "--and", "TRAINER.NAME is not set"),
    ("predict", "", "the following arguments are required"),
    ("predict", "x.jpg --model {dir}", "no image at x.jpg"),
    ("predict", "{dir} --model {dir}", "no image at"),
    ("predict", "{file} --model {dir}", "is no run of train.py"),
    ("predict", "{file} --model {dir} --top 0", "not a number from 1"),
    ("predict", "{file} --model {dir} --top ²", "not a number from 1"),
    ("predict", "{file} --model {dir} --format xml", "invalid choice"),
    ("predict", "{file} --model {dir} --out {dir}", "it is a folder"),
    ("predict", "{file} --model {dir} --out {file}/x.csv", "cannot write"),
    ("predict", "{file} --model {dir} --classes ,", "no class name"),
    ("run_protocol", "", "the following arguments are required"),
    ("run_protocol", "base2new", "invalid choice"),
    ("run_protocol", RUN + "--seeds 3-1", "the smaller one first"),
    ("run_protocol", RUN + "--seeds 1-2 2", "--seeds: 2 is there twice"),
    ("run_protocol", RUN + "--seeds 1,1", "--seeds: 1 is there twice"),
    ("run_protocol", RUN + "--seeds 99999999999", "no seed"),
    ("run_protocol", RUN + "--seeds 1-4000000000", "no range of seeds"),
    ("run_protocol", RUN + "--seeds ²", "no seed"),
    ("run_protocol", RUN + "--seeds -1", "--seeds"),
    ("run_protocol", RUN + "--shots 0", "not a number from 1"),
    ("run_protocol", RUN + "--jobs -2", "not a number from 1"),
    ("run_protocol", RUN + "--attempts 0", "not a number from 1"),
    ("run_protocol", RUN + "--together 0", "not a number from 1"),
    ("run_protocol", RUN + "--per-gpu 0", "not a number from 1"),
    ("run_protocol", RUN + "--time 0", "not a number from 1"),
    ("run_protocol", RUN + "--detach", "--detach is for --cluster slurm"),
    ("run_protocol", RUN + "--gpus-per-job -1 --cluster slurm", "--gpus-per-job"),
    ("run_protocol", RUN + "--gpus-per-job x --cluster slurm", "not a number from 0"),
    ("run_protocol", RUN + "--opts SEED 7", "say --seeds"),
    ("run_protocol", RUN + "--opts OUTPUT_DIR x", "say --output"),
    ("run_protocol", RUN + "--opts DATASET.NUM_SHOTS 7", "say --shots"),
    ("run_protocol", RUN + "--opts OPTIM.MAX_EPOCH None", "takes a value of type int"),
    ("run_protocol", RUN + "--opts OPTIM.MAX_EPOCH 0", "it must be a whole number from 1"),
    ("run_protocol", "lambda --opts TRAINER.DEPT.WEIGHT 0.5", "the protocol lambda varies"),
    ("run_protocol", RUN + "--datasets dtx", "no data set dtx"),
    ("run_protocol", RUN + "--trainers Coop", "did you mean 'CoOp'"),
    ("parse_results", "{dir}/absent", "no such folder"),
    ("parse_results", "{dir}", "no finished run"),
    ("parse_results", "{dir} --seeds 2-1", "the smaller one first"),
    ("parse_results", "{runs} --datasets foo", "there are no runs of foo"),
    ("parse_results", "{runs} --trainers Coop", "did you mean 'CoOp'"),
    ("parse_results", "{runs} --format xml", "invalid choice"),
    ("parse_results", "{runs} --out {dir}", "it is a folder"),
    ("parse_results", "{runs} --plot {dir}/x.png", "nothing to plot"),
    ("analyze", "", "the following arguments are required"),
    ("analyze", "confusion {dir}", "is no run of train.py"),
    ("analyze", "confusion {dir} --top 0", "not a number from 1"),
    ("analyze", "channel-importance {dir} --window x", "not a number from 1"),
    ("export", "{dir}", "--output"),
    ("export", "{dir} --output {dir}/x", "is no run of train.py"),
    ("export", "{dir} --output {dir}/x --private", "--private is for --push"),
    ("status", "{dir}/absent", "no such folder"),
    ("status", "{dir}", "holds no plan"),
    ("status", "{runs} --serve 80", "no port from 1024"),
    ("status", "{runs} --serve x", "no port from 1024"),
    ("status", "{runs} --every 0", "not a number from 1"),
    ("status", "{runs} --watch --json", "not allowed with"),
    ("prepare_data", "", "--root"),
    ("prepare_data", "--root {dir}", "name a data set"),
    ("prepare_data", "dtx --root {dir}", "unknown data set 'dtx'"),
    ("prepare_data", "--check --root {dir}/absent", "no such data folder"),
    ("prepare_data", "dtd --root {dir} --timeout -1", "--timeout"),
    ("prepare_data", "dtd --root {dir} --timeout nan", "--timeout"),
    ("prepare_data", "dtd --root {dir} --retries -1", "--retries"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors")
    (folder / "file").write_text("no image")
    run = folder / "runs/base2new/train_base/dtd/shots_16/CoOp/vit_b16/seed1"
    run.mkdir(parents=True)
    (run / "result.json").write_text('{"accuracy": 80.0, "classes": "base", "seed": 1}')
    (folder / "empty").mkdir()
    return {"dir": folder / "empty", "file": folder / "file", "runs": folder / "runs"}


@pytest.mark.parametrize("door,words,message", MISTAKES, ids=[" ".join(m[:2]) for m in MISTAKES])
def test_mistakes(door, words, message, places, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{door}.py", *words.format(**places).split()])
    monkeypatch.chdir(REPO)
    with pytest.raises(SystemExit) as end, user_errors():
        DOORS[door]()
    said = capsys.readouterr().err
    assert end.value.code == 2 and message in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    "door",
    ["train.py", "predict.py", *sorted(f"scripts/{p.name}" for p in SCRIPTS if p.name[0] != "_")],
)
def test_help_comes_at_once(door):
    """What takes seconds to import isn't, and nothing is done."""
    heavy = {"torch", "matplotlib", "numpy", "scipy", "sklearn"}
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{door!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({door!r}, run_name='__main__')\n"
        "finally:\n"
        f"    print('imported:', *sorted({heavy!r} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith("usage:"), run.stderr
    assert run.stdout.endswith("imported:\n")
    assert f"python {door}" in run.stdout, "no example"


WRONG = {
    "SEED": (2**32, "x"),
    "INPUT.SIZE": ("(224,)", "(0, 224)", "224", "(224, 'a')"),
    "INPUT.PIXEL_MEAN": ("[0.5]", "[0.5, 0.5, None]", "0.5"),
    "INPUT.PIXEL_STD": ("[0.5, 0.5, 0.0]", "[1, 1]"),
    "DATASET.NUM_SHOTS": (-2, "1.5"),
    "DATALOADER.NUM_WORKERS": (-1, "many"),
    "DATALOADER.TRAIN_X.BATCH_SIZE": (0, "(4,)"),
    "OPTIM.LR": ("1e999", -1, "fast"),
    "OPTIM.MAX_EPOCH": (0, "True"),
    "TRAINER.DEPT.LR_MULT": (-1, "1e999"),
    "TRAINER.COOP.N_CTX": (0,),
}


@pytest.mark.parametrize("key,value", [(k, v) for k, values in WRONG.items() for v in values])
def test_values(key, value, command, capsys):
    with pytest.raises(SystemExit) as end, user_errors():
        train.main([*command("DePT_CoOp"), key, str(value)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and key in said and said.count("\n") == 1, said


def test_none_is_no_value_of_any_key(command, capsys):
    """Where a text is expected, None is one."""
    cfg = get_cfg_default()
    for key in CHECKS:
        if key.startswith("TRAINER.") or key == "TEST.CORRUPTION":
            continue
        with pytest.raises(SystemExit), user_errors():
            cfg.merge_from_list([key, "None"])
        assert f"{key} takes a value of type" in capsys.readouterr().err


def test_nobody_reads_the_output(places):
    """`| head` closes the pipe early: no traceback, and none at Python's end."""
    read, write = os.pipe()
    os.close(read)
    for words in (["--help"], [str(places["runs"])]):
        process = subprocess.run(
            [sys.executable, "scripts/parse_results.py", *words],
            cwd=REPO,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.returncode == 141 or words == ["--help"]  # argparse passes over it
        assert "Error" not in process.stderr and "Traceback" not in process.stderr
    os.close(write)


def test_no_room_for_the_output(places):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "scripts/parse_results.py", str(places["runs"])],
            cwd=REPO,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("error: cannot write the output: No space")


def test_no_room_for_shared_memory_is_one_line(command, tmp_path, monkeypatch, capsys):
    import torch

    def full(tensor):
        raise RuntimeError("unable to resize file </torch_1> to the right size: No space left")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(SystemExit) as ended, user_errors():
        train.main(command("CoOp", output=tmp_path / "run"))
    told = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1
    assert told[-1].startswith("error: cannot write /dev/shm/torch: No space left on device (")


@pytest.mark.parametrize(
    ("door", "line", "file"),
    [
        ("predict", "{image} --model {run} --out {out}/p.csv", "p.csv"),
        ("analyze", "nearest-words {run} --out {out}", "nearest_words.csv"),
        ("parse_results", "{results} --out {out}/t.txt", "t.txt"),
        ("parse_results", "{results} --html {out}/r.html", "r.html"),
        ("parse_results", "{results} --plot {out}/p.png", "p.png"),
    ],
)
def test_a_full_disk_is_one_line(
    run_folders, picture_root, tmp_path, full_disk, monkeypatch, capsys, door, line, file
):
    add_pair(tmp_path / "results", "oxford_pets", 90.0, 80.0)
    out = tmp_path / "out"
    out.mkdir()
    image = next(picture_root.rglob("*.png"))
    places = {
        "image": image,
        "run": run_folders["CoOp"],
        "results": tmp_path / "results",
        "out": out,
    }
    words = [word.format(**places) for word in line.split()]
    monkeypatch.setattr(sys, "argv", [door, *words])
    with full_disk(0), pytest.raises(SystemExit) as ended:
        DOORS[door]()
    told = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1
    assert told[-1].startswith(f"error: cannot write {out / file}: File too large"), told
    assert not any(out.iterdir())


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Terminated(143)])
def test_what_fails_because_of_a_signal_is_the_signal(signal, capsys):
    """argparse, interrupted, fails at putting back what it hasn't yet taken."""
    with pytest.raises(SystemExit) as ended, user_errors():
        try:
            raise signal
        finally:
            object().save_nargs  # noqa: B018
    interrupted = signal is KeyboardInterrupt
    assert ended.value.code == (130 if interrupted else 143)
    assert capsys.readouterr().err == ("interrupted\n" if interrupted else "terminated\n")
    with pytest.raises(AttributeError), user_errors():
        object().save_nargs  # noqa: B018

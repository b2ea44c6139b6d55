"""A full or read-only disk: one line, status 1, and the next run goes on from the last epoch."""

from __future__ import annotations

import builtins
import errno
import os

import pytest
from test_resume import OPTIONS, assert_same, outcome
from toy_engine import ToyTrainer, toy_cfg

from dassl.engine import start_log
from dassl.utils import setup_logger, user_errors


class Failing:
    """The n-th call (from 0) that writes below a folder fails; so do all after it."""

    def __init__(self, monkeypatch, folder, kind: str, number: int, n: int) -> None:
        self.folder, self.number, self.left = str(folder), number, n
        owner, name = {"open": (builtins, "open"), "replace": (os, "replace")}.get(kind, (os, kind))
        self.real = getattr(owner, name)
        monkeypatch.setattr(owner, name, getattr(self, kind))

    def _fail(self, path: str | None) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number), path)

    def open(self, file, mode="r", *args, **kwargs):
        if set(mode) & set("wax+") and str(file).startswith(self.folder):
            self._fail(str(file))
        return self.real(file, mode, *args, **kwargs)

    def replace(self, source, target):
        self._fail(str(source))
        return self.real(source, target)

    def fsync(self, descriptor):
        self._fail(None)
        return self.real(descriptor)


def run(toy_root, folder) -> None:
    cfg = toy_cfg(toy_root, folder, *OPTIONS)
    with user_errors():
        try:
            start_log(cfg)
            ToyTrainer(cfg).train()
        finally:
            setup_logger(None)


@pytest.fixture(scope="module")
def whole(toy_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(toy_root, folder)
    return outcome(folder)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(
    "kind,n",
    [
        ("open", 0),
        ("open", 1),
        ("open", 4),
        ("open", 8),
        ("replace", 0),
        ("replace", 1),
        ("replace", 3),
        ("replace", 6),
        ("replace", 10),
        ("replace", 12),
        ("fsync", 0),
        ("fsync", 5),
        ("fsync", 9),
    ],
)
def test_at_every_place(toy_root, tmp_path, monkeypatch, capsys, whole, kind, n, number):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        Failing(patch, tmp_path, kind, number, n)
        run(toy_root, tmp_path)
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot write {tmp_path}") and os.strerror(number) in line
    assert ("MiB free" in line) == (number == errno.ENOSPC)
    assert not (tmp_path / "result.json").exists()
    run(toy_root, tmp_path)
    assert_same(outcome(tmp_path), whole)


def test_tensorboards_thread(toy_root, tmp_path, monkeypatch, capsys):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(SystemExit) as end:
        run(toy_root, tmp_path)
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot write {tmp_path}/tensorboard: No space left on device")

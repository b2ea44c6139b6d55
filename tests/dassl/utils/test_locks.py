"""Locks say where they don't reach other machines."""

import os

import pytest

from dassl.utils import lock_folder, locks, try_flock, unlock_all


@pytest.mark.parametrize(
    "kind,options,told",
    [
        ("nfs4", "rw,vers=4.2,local_lock=none", False),
        ("nfs", "rw,vers=3,nolock,local_lock=all", True),
        ("nfs4", "rw,local_lock=flock", True),
        ("lustre", "rw,flock", False),
        ("lustre", "rw,localflock", True),
        ("fuse.sshfs", "rw", True),
        ("ext4", "rw", False),
    ],
)
def test_locks_of_one_machine_are_told(tmp_path, monkeypatch, capsys, kind, options, told):
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"20 1 0:1 / /proc rw,nosuid - proc proc rw\n"
        f"36 35 {number} / /home rw,noatime shared:1 - {kind} server:/home {options}\n"
    )
    monkeypatch.setattr(locks, "MOUNTS", mounts)
    locks._of_one_machine.cache_clear()
    locks._told.clear()
    for name in "ab":
        with open(tmp_path / name, "w") as file:
            assert try_flock(file, tmp_path)
    locks._of_one_machine.cache_clear()
    out = capsys.readouterr().out
    assert out.count(f"({kind}) keeps its locks to this machine") == told
    assert bool(out) == told


def test_a_lock_has_one_holder(tmp_path):
    path = tmp_path / "lock"
    with open(path, "w") as one, open(path, "w") as two:
        assert try_flock(one, path) and try_flock(two, path) is False
        one.close()
        assert try_flock(two, path)


def test_all_can_be_given_back(tmp_path):
    for name in "ab":
        lock_folder(tmp_path / name)
    with open(tmp_path / "a" / ".lock") as file:
        assert try_flock(file, tmp_path) is False
        unlock_all()
        assert try_flock(file, tmp_path)
    lock_folder(tmp_path / "b")
    unlock_all()

"""The cache gives back what was put under exactly this key, whole, or nothing."""

import errno
import multiprocessing
import os
import threading
import time

import pytest
import torch

from dassl.utils import TensorCache, atomic_write, locks, partial_files

TENSOR = torch.arange(12, dtype=torch.float32).view(3, 4)


@pytest.fixture
def cache(tmp_path):
    return TensorCache(tmp_path / "cache", max_bytes=1 << 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_what_was_put_comes_back(cache, dtype):
    assert cache.get({"a": 1}) is None
    assert cache.put({"a": 1, "b": [2]}, TENSOR.to(dtype))
    again = TensorCache(cache.folder, cache.max_bytes).get({"b": [2], "a": 1})
    assert again.dtype == dtype
    assert torch.equal(again, TENSOR.to(dtype))
    assert cache.get({"a": 1, "b": [3]}) is None


def test_only_the_view_is_stored(cache):
    cache.put({}, torch.zeros(100_000)[:10])
    (file,) = cache.folder.iterdir()
    assert file.stat().st_size < 5000


@pytest.mark.parametrize("damage", ["half", "flipped", "another", "text", "empty"])
def test_damaged_files_are_dropped(cache, damage):
    cache.put({"a": 1}, TENSOR)
    (file,) = cache.folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "half":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        at = content.index(TENSOR.numpy().tobytes())
        content[at] ^= 1
    elif damage == "another":
        cache.put({"a": 2}, TENSOR)
        (other,) = set(cache.folder.iterdir()) - {file}
        content = other.read_bytes()
    else:
        content = b"hello" if damage == "text" else b""
    file.write_bytes(content)
    assert cache.get({"a": 1}) is None
    assert not file.exists()
    assert cache.put({"a": 1}, TENSOR)
    assert torch.equal(cache.get({"a": 1}), TENSOR)


def test_the_least_recently_used_makes_room(tmp_path):
    tensor = torch.zeros(1000, dtype=torch.float32)
    cache = TensorCache(tmp_path, max_bytes=3 * 6000)
    for i in range(3):
        cache.put({"i": i}, tensor)
        (file,) = [f for f in tmp_path.iterdir() if f.stat().st_mtime > time.time() - 60]
        os.utime(file, (i + 1, i + 1))
    assert cache.get({"i": 0}) is not None  # now used last
    cache.put({"i": 3}, tensor)
    assert [cache.get({"i": i}) is not None for i in range(4)] == [True, False, True, True]
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= cache.max_bytes
    assert not cache.put({"i": 4}, torch.zeros(10_000))
    assert cache.get({"i": 0}) is not None


def test_what_killed_processes_left_goes(cache):
    cache.put({"a": 1}, TENSOR)
    old, new = (cache.folder / f".x.pt.partial-{name}" for name in ("old", "new"))
    for file in (old, new):
        file.touch()
    os.utime(old, (1, 1))
    cache.put({"a": 2}, TENSOR)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_folder_that_cannot_be_written_is_no_cache(tmp_path):
    (tmp_path / "file").touch()
    cache = TensorCache(tmp_path / "file" / "cache", max_bytes=1 << 20)
    assert not cache.put({}, TENSOR)
    assert cache.get({}) is None


def _work(folder, seed):
    cache = TensorCache(folder, max_bytes=8 * 6000)
    for i in range(40):
        number = (i * seed) % 10
        found = cache.get({"number": number})
        if found is not None:
            assert (found == number).all()
        cache.put({"number": number}, torch.full((1000,), float(number)))


def test_many_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(tmp_path, seed)) for seed in (1, 3, 7)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert all(file.suffix == ".pt" for file in tmp_path.iterdir())


def test_on_a_full_disk_nothing_is_stored_and_nothing_ends(cache, full_disk):
    with full_disk():
        assert not cache.put({"a": 1}, torch.zeros(10_000))
    assert cache.get({"a": 1}) is None and not list(cache.folder.iterdir())


def _compute(folder, key, started, release, computed):
    cache = TensorCache(folder, max_bytes=1 << 20)
    with cache.alone({"key": key}, wait=lambda: True) as alone:
        if cache.get({"key": key}) is None:
            computed.put((key, alone))
            started.set()
            release.wait(30)
            cache.put({"key": key}, TENSOR)


def test_one_computes_and_the_others_read(tmp_path):
    context = multiprocessing.get_context("fork")
    started, release, computed = context.Event(), context.Event(), context.Queue()
    work = (tmp_path, 1, started, release, computed)
    workers = [context.Process(target=_compute, args=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert started.wait(30)
    cache = TensorCache(tmp_path, max_bytes=1 << 20)
    with cache.alone({"key": 1}, wait=lambda: False) as alone:
        assert not alone  # who doesn't wait goes on by himself
    with cache.alone({"key": 2}, wait=lambda: False) as alone:
        assert alone
    release.set()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert computed.get(timeout=5) == (1, True) and computed.empty()
    assert [file.suffix for file in tmp_path.iterdir()] == [".pt"]


def test_a_killed_holder_frees_the_key(tmp_path):
    context = multiprocessing.get_context("fork")
    started, release, computed = context.Event(), context.Event(), context.Queue()
    worker = context.Process(target=_compute, args=(tmp_path, 1, started, release, computed))
    worker.start()
    assert started.wait(30)
    threading.Timer(0.1, worker.kill).start()
    with TensorCache(tmp_path, max_bytes=1 << 20).alone({"key": 1}, lambda: True) as alone:
        assert alone
    worker.join()
    assert not list(tmp_path.iterdir())


def _two_keys(folder, first, second, both, done):
    cache = TensorCache(folder, max_bytes=1 << 20)
    with cache.alone({"key": first}, lambda: True) as one:
        both.wait(30)
        with cache.alone({"key": second}, lambda: True) as two:
            done.put((one, two))
            both.wait(30)


def test_two_that_want_each_others_keys_do_not_wait_for_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    both, done = context.Barrier(2), context.Queue()
    for keys in ((1, 2), (2, 1)):
        context.Process(target=_two_keys, args=(tmp_path, *keys, both, done)).start()
    assert [done.get(timeout=30) for _ in range(2)] == [(True, False)] * 2


def test_where_there_are_no_locks_nobody_waits(cache, monkeypatch, capsys):
    def none(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    locks._told.clear()
    for _ in range(2):
        with cache.alone({"a": 1}, lambda: True) as alone:
            assert not alone and cache.put({"a": 1}, TENSOR)
    assert capsys.readouterr().out.count("has no locks (No locks available)") == 1
    (cache.folder / "file").touch()
    inside = TensorCache(cache.folder / "file" / "cache", max_bytes=1 << 20)
    with inside.alone({}, lambda: True) as alone:
        assert not alone


def test_an_unfinished_file_stays_as_long_as_its_writer(cache):
    """However old; and goes a minute after a killed one's last bytes."""
    cache.put({"a": 1}, TENSOR)
    with atomic_write(cache.folder / "b.pt", "wb"):
        (partial,) = partial_files(cache.folder)
        os.utime(partial, (1, 1))
        cache.put({"a": 2}, TENSOR)
        assert partial.exists()
    killed = cache.folder / ".x.pt.partial-0"
    killed.touch()
    two_minutes_ago = time.time() - 120
    os.utime(killed, (two_minutes_ago, two_minutes_ago))
    cache.put({"a": 3}, TENSOR)
    assert not killed.exists()

from __future__ import annotations

import multiprocessing
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    UserError,
    atomic_write,
    collect_env_info,
    file_sha256,
    forget_peak_memory,
    get_rng_state,
    listdir_nohidden,
    lock_folder,
    peak_memory_mb,
    read_image,
    read_json,
    remove_partial_files,
    resolve_seed,
    set_random_seed,
    set_rng_state,
    setup_logger,
    suggest,
    tolist_if_not,
    unlock_folder,
    user_errors,
    write_json,
)
from dassl.utils.seeds import forget_any_seed


def test_light_imports_leave_torch_alone():
    code = (
        "import sys, dassl.config, dassl.utils\n"
        "from dassl.utils import UserError, Registry, setup_logger, read_image, MetricMeter\n"
        "heavy = {'torch', 'numpy', 'torchvision', 'sklearn', 'tensorboard', 'PIL'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_exports_exist():
    import dassl.data
    import dassl.engine
    import dassl.utils

    for package in (dassl.data, dassl.engine, dassl.utils):
        for name in package.__all__:
            assert name in vars(package)  # imported, not made up by a `__getattr__`


def test_user_errors_end_in_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise UserError("no such\nthing")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no such thing\n"


def test_other_errors_keep_their_traceback():
    @user_errors()
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_suggest():
    assert suggest("coop", ["CoOp", "MaPLe"]) == " (did you mean 'CoOp'?)"
    assert suggest("CoOps", ["CoOp", "CoCoOp", "MaPLe"]) == " (did you mean 'CoOp' or 'CoCoOp'?)"
    assert suggest("zzz", ["CoOp"]) == ""


def test_registry():
    registry = Registry("TRAINER")

    @registry.register()
    class One: ...

    assert registry.get("One") is One
    assert registry.registered_names() == list(registry) == ["One"] and "One" in registry
    with pytest.raises(KeyError, match="registered already"):
        registry.register(type("One", (), {}))
    registry.register(type("One", (), {}), force=True)
    with pytest.raises(UserError, match=r"unknown trainer 'one' \(did you mean 'One'\?\)"):
        registry.get("one")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as file:
        file.write("first")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("second")
        raise ZeroDivisionError
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["file.txt"]
    with atomic_write(path, "wb") as file:
        file.write(b"\0")
    assert path.read_bytes() == b"\0"


def _die_while_writing(path):
    with atomic_write(path) as file:
        file.write("half")
        file.flush()
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_partial_files_of_a_killed_process_are_removed(tmp_path):
    writer = multiprocessing.get_context("fork").Process(
        target=_die_while_writing, args=(tmp_path / "file.txt",)
    )
    writer.start()
    writer.join()
    (tmp_path / ".hidden").touch()
    assert len(os.listdir(tmp_path)) == 2 and not (tmp_path / "file.txt").exists()
    remove_partial_files(tmp_path)
    assert os.listdir(tmp_path) == [".hidden"]


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json({"ü": [1, 2.5, None]}, path)
    assert read_json(path) == {"ü": [1, 2.5, None]}
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(path)
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_listing_hides_dot_files(tmp_path):
    for name in ("b", ".c", "a"):
        (tmp_path / name).touch()
    assert listdir_nohidden(tmp_path, sort=True) == ["a", "b"]
    with pytest.raises(UserError, match="no such folder"):
        listdir_nohidden(tmp_path / "none")


def test_sha256_follows_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    first = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == first
    path.write_bytes(b"abcd")
    assert file_sha256(path) != first
    with pytest.raises(UserError, match="no such file"):
        file_sha256(tmp_path / "b")


def test_image_is_read_as_rgb(tmp_path):
    Image.new("LA", (3, 2), (7, 0)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").getpixel((0, 0)) == (7, 7, 7)
    (tmp_path / "bad.png").write_bytes((tmp_path / "grey.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"cannot decode .*bad\.png"):
        read_image(tmp_path / "bad.png")
    with pytest.raises(UserError, match=r"no such image: .*none\.png"):
        read_image(tmp_path / "none.png")


def test_truncated_jpeg_is_an_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg")


def _hold(folder, held, done):
    lock_folder(folder)
    held.set()
    done.wait(20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_folder_has_one_holder(tmp_path):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    assert held.wait(20)
    with pytest.raises(UserError, match="in use by another run"):
        lock_folder(tmp_path)
    other.kill()
    other.join()
    lock_folder(tmp_path)
    lock_folder(tmp_path)  # again is fine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_hold_its_parents_folder(tmp_path):
    lock_folder(tmp_path)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=context.Event().wait, args=(20,))  # as an orphaned worker
    child.start()
    unlock_folder(tmp_path)
    rival = context.Process(target=lock_folder, args=(tmp_path,))
    rival.start()
    rival.join()
    child.kill()
    child.join()
    assert rival.exitcode == 0


def test_log_copies_both_streams(tmp_path, capsys):
    setup_logger(tmp_path)
    print("one")
    print("two", file=sys.stderr)
    setup_logger(tmp_path, append=True)
    print("three")
    setup_logger(None)
    print("four")
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\nthree\n"
    assert capsys.readouterr() == ("one\nthree\nfour\n", "two\n")
    setup_logger(tmp_path / "log.txt")
    setup_logger(None)
    assert (tmp_path / "log.txt").read_text() == ""


def test_meters_take_numbers_and_tensors():
    meter = AverageMeter()
    for value in (1, torch.tensor([2.0]), torch.tensor(6.0, requires_grad=True)):
        meter.update(value)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (6.0, 3.0, 9.0, 3)
    exponential = AverageMeter(ema=True)
    exponential.update(1.0)
    exponential.update(2.0)
    assert exponential.avg == pytest.approx(1.1)
    meters = MetricMeter()
    meters.update({"loss": torch.tensor(0.5), "acc": 50})
    assert str(meters) == "loss 0.5000 (0.5000) acc 50.0000 (50.0000)"
    with pytest.raises(TypeError):
        meters.update([1])


def test_mean_of_many_small_numbers_keeps_its_digits():
    meter = AverageMeter()
    for _ in range(10_000):
        meter.update(torch.tensor(0.1))
    assert meter.avg == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def _draw() -> tuple:
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_generators_can_be_taken_back():
    set_random_seed(3)
    first = _draw()
    state = get_rng_state()
    second = _draw()
    set_rng_state(state)
    assert _draw() == second
    set_random_seed(3)
    assert _draw() == first != second


def test_negative_seed_means_one_draw_per_process():
    assert resolve_seed(5) == 5
    assert resolve_seed(-1) == resolve_seed(-2) >= 0
    drawn = set()
    for _ in range(4):
        drawn.add(resolve_seed(-1))
        forget_any_seed()
    assert len(drawn) > 1
    with pytest.raises(UserError, match="the seed is 4294967296"):
        set_random_seed(2**32)


def test_small_ones():
    assert tolist_if_not(1) == [1] and tolist_if_not([1]) == [1]
    assert "torch" in collect_env_info()


def test_peak_memory_is_this_process_own():
    """Not what the process that started it had used; and it grows with what is used."""
    script = (
        "from dassl.utils import peak_memory_mb as peak; before = peak(); "
        "used = bytearray(b'1') * (300 << 20); print(before, peak())"
    )
    kept = bytearray(b"1") * (1 << 30)  # touched, so it counts as this process's
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before, after = map(float, done.stdout.split())
    assert before + 250 < after
    if sys.platform == "linux":
        assert before < len(kept) / 2**20


def test_json_holds_no_number_that_json_lacks(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"a\.1 is infinite or NaN"):
        write_json({"a": [1.0, float("nan")]}, path)
    assert not path.exists()
    path.write_text('{"a": NaN}')
    with pytest.raises(UserError, match="NaN is no number"):
        read_json(path)


def test_a_file_name_that_is_not_utf8_survives_json(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json({"path": name}, tmp_path / "x.json")
    assert read_json(tmp_path / "x.json") == {"path": name}


def test_a_file_that_cannot_be_opened_is_named(capsys):
    with pytest.raises(SystemExit) as end, user_errors():
        pathlib.Path("/").read_bytes()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: /: Is a directory\n"


def test_a_peak_of_memory_can_be_forgotten():
    large = np.ones(2**24)  # 128 MiB
    before = peak_memory_mb()
    del large
    forget_peak_memory()
    assert peak_memory_mb() < before - 64 or sys.platform != "linux"

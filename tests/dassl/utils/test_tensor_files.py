"""Every file of tensors is read exactly, without its code, and never when a bit of it is wrong."""

from __future__ import annotations

import io
import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from clip.model import CLIP
from dassl.utils import UserError, load_checkpoint, save_plain
from dassl.utils.tensor_files import read_tensors


class Parts(nn.Module):
    """What an archive may hold beside plain weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        self.register_buffer("strided", torch.arange(12.0).view(3, 4).t()[1:, ::2])
        self.register_buffer("same", self.strided)
        whole = torch.arange(10)
        self.register_buffer("first", whole[:4])
        self.register_buffer("last", whole[6:])
        self.register_buffer("fp16", torch.randn(3, 2).half())
        self.register_buffer("bf16", torch.randn(5).bfloat16())
        self.register_buffer("truth", torch.tensor([True, False]))
        self.register_buffer("scalar", torch.tensor(224))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("repeated", torch.ones(1, 2).expand(4, 2))
        self.constant = torch.ones(7)  # neither parameter nor buffer
        self.tied = self.layers[0].weight
        self.numbers = [1, 2]
        self.by_name = {"a": torch.ones(1)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + self.constant.sum() * self.numbers[0] + self.by_name["a"]


class Bomb(nn.Module):
    """Its archive holds code that `torch.jit.load` runs."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.w = state[0]
        self.training = state[1]
        print("its code runs")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def small_clip() -> CLIP:
    return CLIP(8, 16, 1, 64, 8, 7, 20, 64, 1, 1).eval()


def traced() -> torch.jit.ScriptModule:
    model = small_clip()
    return torch.jit.trace_module(
        model,
        {
            "encode_image": torch.zeros(1, 3, 16, 16),
            "encode_text": torch.zeros(1, 7, dtype=torch.int),
        },
    )


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    "make",
    [lambda: torch.jit.script(Parts()), traced, lambda: torch.jit.script(nn.ReLU())],
    ids=["parts", "clip", "empty"],
)
@pytest.mark.parametrize("half", [False, True])
def test_a_torchscript_archive_gives_torchs_own_state_dict(tmp_path, make, half):
    torch.manual_seed(0)
    module = make()
    torch.jit.save(module.half() if half else module, tmp_path / "a.pt")
    expected = torch.jit.load(tmp_path / "a.pt", map_location="cpu").state_dict()
    found = read_tensors(tmp_path / "a.pt")
    assert list(found) == list(expected)
    for name, value in expected.items():
        ours = found[name]
        assert (ours.dtype, ours.shape, ours.stride()) == (value.dtype, value.shape, value.stride())
        assert torch.equal(ours, value) and not ours.requires_grad, name


def test_an_archives_code_never_runs(tmp_path, capfd):
    torch.jit.save(torch.jit.script(Bomb()), tmp_path / "a.pt")
    with pytest.raises(UserError, match="module Bomb is read by code of its own, which isn't run"):
        read_tensors(tmp_path / "a.pt")
    assert "runs" not in "".join(capfd.readouterr())
    torch.jit.load(tmp_path / "a.pt")  # as it would
    assert "runs" in capfd.readouterr().out


def test_what_is_saved_comes_back(tmp_path):
    whole = torch.arange(10.0)
    state = {
        "strided": whole.view(2, 5).t(),
        "part": whole[3:6],
        "repeated": torch.ones(1).expand(5),
        "empty": torch.zeros(0, 4),
        "f8": torch.ones(3).to(torch.float8_e4m3fn),
        "u16": torch.arange(4).to(torch.uint16),
        "complex": torch.ones(2, dtype=torch.complex64),
        "sparse": torch.eye(4).to_sparse(1),
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": [1, -(10**30), 1.5, "ü", b"\xff\0", None, True, (1, ("a",)), {"b": torch.float16}],
        7: torch.Size([2, 3]),
    }
    torch.save(state, tmp_path / "new")
    old = {key: value for key, value in state.items() if key not in ("f8", "u16")}
    torch.save(old, tmp_path / "old", _use_new_zipfile_serialization=False)
    for name, expected in (("new", state), ("old", old)):
        found = read_tensors(tmp_path / name)
        assert list(found) == list(expected) and found["plain"] == state["plain"]
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                ours = found[key]
                assert (ours.dtype, ours.shape) == (value.dtype, value.shape)
                ours, value = (t.to_dense() if t.is_sparse else t for t in (ours, value))
                assert ours.stride() == value.stride()
                assert torch.equal(ours, value), key
        assert found["part"].untyped_storage().nbytes() == 40  # shared, as it was


def test_a_storage_is_shared_as_it_was(tmp_path):
    whole = torch.zeros(4)
    torch.save({"a": whole[:2], "b": whole}, tmp_path / "a")
    found = read_tensors(tmp_path / "a")
    found["a"][0] = 1
    assert found["b"][0] == 1


# Damage.


def flips(content: bytes, step: int = 1):
    """(place, content) with one bit the other way."""
    for place in range(0, len(content), step):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place * 5 % 8)
        yield place, bytes(damaged)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b


def test_no_flipped_bit_is_read(tmp_path):
    torch.manual_seed(0)
    save_plain({"state_dict": {"w": torch.randn(40)}, "epoch": 3}, tmp_path / "a")
    torch.jit.save(torch.jit.script(nn.Linear(3, 20)), tmp_path / "b")
    refused = 0
    for name, step in (("a", 2), ("b", 7)):
        path = tmp_path / name
        content, expected = path.read_bytes(), read_tensors(path)
        for place, damaged in flips(content, step):
            path.write_bytes(damaged)
            try:
                assert same(read_tensors(path), expected), place
            except UserError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
                assert "weights_only" not in str(error)
    assert refused > 400


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_files_are_refused(tmp_path, legacy):
    path = tmp_path / "a"
    torch.save({"w": torch.ones(9)}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    for end in range(0, len(content) - 1, 7):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="a is not a readable checkpoint"):
            read_tensors(path)


def test_no_advice_of_pytorchs_reaches_the_user(tmp_path):
    for legacy in (False, True):
        torch.save({"a": Path("x")}, tmp_path / "a", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError) as error:
            load_checkpoint(tmp_path / "a")
        assert "holds objects that are not loaded: pathlib." in str(error.value)
        assert "weights_only" not in str(error.value) and "torch.load" not in str(error.value)


# Pickles made to hurt.


def archive(path: Path, program: bytes, storage: bytes = bytes(16)) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/byteorder", sys.byteorder)
        file.writestr("a/data/0", storage)
    return path


def tensor_program(numel: int, offset: int, size: tuple, stride: tuple) -> bytes:
    """A pickle of one float32 tensor in storage 0."""
    out = io.BytesIO()

    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            return value if isinstance(value, tuple) and value[:1] == ("storage",) else None

    class Made:
        def __reduce__(self):
            storage = ("storage", torch.FloatStorage, "0", "cpu", numel)
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, {})

    Writer(out, 2).dump({"t": Made()})
    return out.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 1, (4,), (1,)), "beyond its storage"),
        ((4, 0, (2, 2), (3, 1)), "beyond its storage"),
        ((5, 0, (1,), (1,)), "another size"),
        ((4, -1, (1,), (1,)), "unknown kind"),
        ((4, 0, (2,), (-1,)), "unknown kind"),
        ((4, 0, (2,), (1, 1)), "unknown kind"),
        ((4, 0, (1 << 40,), (0,)), "larger than the file"),
        ((4, 0, ("a",), (1,)), "unknown kind"),
        ((1 << 70, 0, (1,), (1,)), "another size"),
    ],
)
def test_tensors_that_cannot_be(tmp_path, arguments, message):
    path = archive(tmp_path / "a", tensor_program(4, 0, (2, 2), (2, 1)))
    assert torch.equal(read_tensors(path)["t"], torch.zeros(2, 2))
    with pytest.raises(UserError, match=message):
        read_tensors(archive(path, tensor_program(*arguments)))


SHARED = b"]q\0" + b"".join(
    b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", id="lists"),
        pytest.param(b"\x80\x02})" + b"\x85" * 2_000_000 + b"Ns.", id="a key of tuples"),
        pytest.param(b"\x80\x02]r\xff\xff\xff\x7f.", id="a memory of 2^31 places"),
        pytest.param(b"\x80\x02]q\0h\0a.", id="in itself"),
        pytest.param(b"\x80\x02cposix\nsystem\nX\x02\0\0\0:;\x85R.", id="a call"),
        pytest.param(b"\x80\x02\x82\1.", id="an extension"),
        pytest.param(b"\x80\x02(X\1\0\0\0aios\nsystem\n.", id="an instance"),
        pytest.param(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", id="endless bytes"),
        pytest.param(b"\x80\x02ctorch\nFloatStorage\n)R.", id="a type called"),
        pytest.param(b"\x80\x02cbuiltins\neval\n.", id="eval"),
        pytest.param(b"\x80\x02h\5.", id="nothing there"),
        pytest.param(b"\x80\x02X\3\0\0\0a/bQ.", id="a storage of no kind"),
        pytest.param(b"", id="empty"),
    ],
)
def test_programs_end_in_one_line(tmp_path, program):
    path = archive(tmp_path / "a", program)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path} ") and "\n" not in str(error.value)


def test_shared_lists_are_walked_once(tmp_path):
    (kept,) = [read_tensors(archive(tmp_path / "a", b"\x80\x02" + SHARED + b"."))]
    assert kept[0] is kept[1]


def test_other_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/zero"), tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match="is no regular file|is a folder|cannot read"):
            read_tensors(path)

"""Files that hold tensors: PyTorch's, TorchScript archives, safetensors. No code of a file runs.

PyTorch's files are zips of a pickle and one record per storage; a TorchScript archive has its code
beside them, which is only searched for what it calls parameters and buffers. Every record's
checksum is compared. Files from before PyTorch 1.6, and safetensors, have no checksums.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch import nn

from .errors import UserError
from .pickles import PickleError, check_pickle, load_pickle, plain
from .reading import TEXT_LIMIT, open_file, reason
from .torchscript import script_finder, state_dict

_ZIP = b"PK\x03\x04"
# How a file of PyTorch before 1.6 begins: a pickled number.
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_EXPANDED = 1 << 32  # elements of a tensor that repeats what is in the file
_PLAIN = (
    *(str, int, float, bool, bytes, complex, type(None)),
    *(torch.Tensor, nn.Parameter, torch.dtype, torch.device),
)


def read_tensors(path: str | os.PathLike) -> Any:
    """Return what a file of tensors holds: nested dicts, lists and tuples, tensors on the CPU.

    Of a TorchScript archive that is the state dict `torch.jit.load(path).state_dict()` would give.
    Objects of schedulers and numpy, as in checkpoints of Dassl's original code, are left out.

    Raises:
        UserError: the file is missing, in another format, damaged, or holds other objects.
    """
    try:
        with open_file(path) as file:
            head = file.read(len(_LEGACY))
            if head.startswith(_ZIP) or zipfile.is_zipfile(file):
                return _read_archive(file)
            file.seek(0)
            if head == _LEGACY:
                return _read_legacy(file)
            if head[8:9] == b"{":
                return _read_safetensors(path)
        raise PickleError("it isn't in a format of PyTorch or safetensors")
    except PickleError as error:
        raise UserError(f"{path} is not a readable checkpoint ({reason(error)})") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a readable checkpoint (damaged: {reason(error)})") from None
    except MemoryError:
        raise UserError(f"{path} claims to hold more than there is memory for") from None
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error) as error:
        raise UserError(f"{path} is not a readable checkpoint ({reason(error)})") from None


# ------------------------------------------------------------ zips


class _Archive:
    """The records of a zip, each read against its checksum.

    Raises zipfile.BadZipFile for a record that is not what it was when it was written.
    """

    def __init__(self, file: BinaryIO) -> None:
        size = file.seek(0, 2)
        self._zip = zipfile.ZipFile(file)
        records = self._zip.infolist()
        self._records = {record.filename: record for record in records}
        self._unread = set(self._records)
        if len(self._records) < len(records):
            raise zipfile.BadZipFile("two of its records have one name")
        packed = [r for r in records if r.compress_type != zipfile.ZIP_STORED]
        if sum(record.compress_size for record in records) > size or (
            sum(record.file_size for record in packed) > TEXT_LIMIT
        ):
            raise zipfile.BadZipFile("its records are larger than the file")

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def read(self, name: str) -> torch.Tensor:
        """Return a record's bytes as a uint8 tensor."""
        if name not in self._records:
            raise PickleError(f"its record {name} is missing")
        record = self._records[name]
        if record.compress_type == zipfile.ZIP_STORED and record.file_size != record.compress_size:
            raise zipfile.BadZipFile(f"the size of its record {name} is wrong")
        content = torch.empty(record.file_size, dtype=torch.uint8)
        target, place = content.numpy(), 0
        for chunk in self._chunks(name):
            target[place : place + len(chunk)] = bytearray(chunk)
            place += len(chunk)
        return content

    def text(self, name: str) -> bytes:
        return self.read(name).numpy().tobytes()

    def check_rest(self) -> None:
        """Compare the checksums of the records that nobody has read."""
        for name in list(self._unread):
            for _ in self._chunks(name):
                pass

    def _chunks(self, name: str) -> Iterator[bytes]:
        left = self._records[name].file_size
        try:
            with self._zip.open(name) as record:
                while chunk := record.read(1 << 20):
                    left -= len(chunk)
                    yield chunk
        except (zlib.error, EOFError, RuntimeError) as error:
            raise zipfile.BadZipFile(f"its record {name} is unreadable ({error})") from None
        if left:
            raise zipfile.BadZipFile(f"its record {name} is cut off")
        self._unread.discard(name)


def _read_archive(file: BinaryIO) -> Any:
    archive = _Archive(file)
    tops = [n.partition("/")[0] for n in archive if re.fullmatch(r"[^/]+/data\.pkl", n)]
    if len(tops) != 1:
        raise PickleError("it is a zip, but not one of PyTorch's")
    (top,) = tops
    order = f"{top}/byteorder"
    if order in archive and archive.text(order).decode("latin1") != sys.byteorder:
        raise PickleError("it was written on a machine with another order of bytes")
    is_script = f"{top}/constants.pkl" in archive
    find = script_finder(_find) if is_script else _find
    content = load_pickle(archive.text(f"{top}/data.pkl"), find, _Storages(archive, f"{top}/data/"))
    archive.check_rest()
    if is_script:
        content = state_dict(content, lambda name: archive.text(f"{top}/code/{name}"))
    return plain(content, _PLAIN, _Ignored)


class _Storages:
    """The storages of an archive, by the keys in its pickle."""

    def __init__(self, archive: _Archive, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._read: dict[str, torch.Tensor] = {}

    def __call__(self, key: Any) -> _Storage:
        word, kind, name, _, numel = key
        if word != "storage" or not isinstance(kind, torch.dtype):
            raise PickleError("it refers to something that is no storage")
        if not isinstance(name, str) or type(numel) is not int or numel < 0:
            raise PickleError("it refers to a storage that can't be")
        if name not in self._read:
            record = self._folder + name
            empty = not numel and record not in self._archive
            self._read[name] = torch.empty(0).byte() if empty else self._archive.read(record)
        content = self._read[name]
        if content.numel() != numel * kind.itemsize:
            raise PickleError(f"its storage {name} has another size than its tensors")
        return _Storage(content.untyped_storage(), kind, numel)


class _Storage:
    """Memory, the type of its elements, and how many there are."""

    def __init__(self, content: torch.UntypedStorage, dtype: torch.dtype, numel: int) -> None:
        self.content, self.dtype, self.numel = content, dtype, numel


# ------------------------------------------------------------ what a pickle may name


class _Ignored:
    """Stands for an object whose class is not to be loaded."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Dict(dict):
    """Stands for dicts of other classes; attributes of theirs are left out."""

    def __setstate__(self, state: Any) -> None: ...


def _counts(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _tensor(
    storage: _Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the tensor of these sizes and strides, all in elements, in a storage."""
    dtype = dtype or storage.dtype
    available = storage.content.nbytes() // dtype.itemsize
    if metadata or len(size) != len(stride) or not _counts(offset, *size, *stride):
        raise PickleError("it holds a tensor of an unknown kind")
    numel = 1
    for n in size:
        numel *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel and last >= available:
        raise PickleError("it holds a tensor beyond its storage")
    if numel > max(available, _EXPANDED):
        raise PickleError("it holds a tensor that is larger than the file")
    # `set_` makes a tensor of its own, not a view of one; below bounds it never resizes.
    empty = torch.empty(0, dtype=dtype)
    return empty.set_(storage.content, offset if numel else 0, tuple(size), tuple(stride))


def _tensor_v3(
    storage: _Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> torch.Tensor:
    return _tensor(storage, offset, size, stride, False, None, metadata, dtype)


def _sparse_tensor(layout: str, data: tuple) -> torch.Tensor:
    """Return a COO tensor, its indices checked."""
    indices, values, size, *coalesced = data
    if layout != "torch.sparse_coo" or not _counts(*size):
        raise PickleError("it holds a sparse tensor of an unknown kind")
    numel = 1
    for n in size:
        numel *= n
    if numel > _EXPANDED:
        raise PickleError("it holds a tensor that is larger than the file")
    tensor = torch.sparse_coo_tensor(indices, values, tuple(size), check_invariants=True)
    return tensor.coalesce() if coalesced and coalesced[0] else tensor


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise PickleError(f"it encodes a text in {encoding}")
    return text.encode("latin1")


_DTYPES = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16},
    **{"BFloat16": torch.bfloat16, "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8},
    **{"Short": torch.int16, "Int": torch.int32, "Long": torch.int64},
    **{"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
}
_NAMES: dict[str, Any] = {
    **{f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()},
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.Size": tuple,
    "torch.device": torch.device,
    "torch.serialization._get_layout": str,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_sparse_tensor": _sparse_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "collections.OrderedDict": _Dict,
    "collections.Counter": _Dict,
    "collections.defaultdict": lambda *_: _Dict(),
    "_codecs.encode": _encode,
    # Python 2's name for them is what protocol 2 writes.
    **dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), lambda: b""),
    **dict.fromkeys(("builtins.dict", "__builtin__.dict"), _Dict),
}
# Dassl's own checkpoints hold their schedulers, and through them an optimizer, as objects; and
# their results as numbers of numpy's.
_IGNORED_PACKAGES = {("torch", "optim"), ("dassl",), ("numpy",)}
_IGNORED_NAMES = {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("getattr", "object", "set", "list")
}


def _find(module: str, name: str) -> Any:
    """Return what stands for a name in a pickle. Raises PickleError for one we have no need of."""
    full = f"{module}.{name}"
    if full in _NAMES:
        return _NAMES[full]
    words = tuple(module.split("."))
    if words[:1] in _IGNORED_PACKAGES or words[:2] in _IGNORED_PACKAGES or full in _IGNORED_NAMES:
        return _Ignored
    raise PickleError(f"it holds objects that are not loaded: {full}")


# ------------------------------------------------------------ other formats


def _read_legacy(file: BinaryIO) -> Any:
    """Return what PyTorch before 1.6 wrote, by its own safe loader."""
    for _ in range(5):  # a number, the version, the system, the object, the storages' keys
        check_pickle(file)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sparse tensors are checked, as they should be
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # its texts are advice to load such files unsafely
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name:
            raise PickleError(f"it holds objects that are not loaded: {name[1]}") from None
        raise PickleError("it is cut off, or otherwise damaged") from None
    return plain(content, _PLAIN)


def _read_safetensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise PickleError(reason(error)) from None

"""Damage files of every kind that is read, and read them: a line each, never a traceback.

    python tests/fuzz_inputs.py --number 10000          in all; a tenth of a minute per thousand

Each input is drawn from its number alone. Nothing in a file may start a program, or write outside
of the folder it is read in.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import random
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import yaml
from PIL import Image

from clip.clip import load_state_dict
from clip.model import CLIP, build_model
from dassl.config import get_cfg_default
from dassl.utils import (
    UserError,
    load_checkpoint,
    read_image,
    read_json_lines,
)
from dassl.utils.tensor_files import read_tensors
from datasets.annotations import read_csv, read_mat
from datasets.preparation.fewshot_pickle import read_sample
from datasets.preparation.unpack import UnpackError, unpack
from datasets.splits import read_split
from experiments.results.scores import load_scores
from experiments.results.summary import summarize
from experiments.results.tables import method_order
from tuning.original_checkpoints import read as read_original

ODD = (None, 5, -1, 1.5, "x", "", [], {}, [[]], {"a": 1}, True, 10**30, "../x", "\udc80", [None])
SPAWNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn")


class Kind:
    """A kind of file: its name, a whole one's content, and its reader."""

    def __init__(self, name: str, whole: bytes, read: Callable[[Path], Any]) -> None:
        self.name, self.whole, self.read = name, whole, read


# ------------------------------------------------------------ whole files


def small_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(8, 16, 1, 64, 8, 7, 20, 64, 1, 1).eval()


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 3))), buffer)
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 14, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a/b.txt", "content " * 9)
            file.writestr("a/c.txt", "more")
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("a/b.txt", "c.txt"):
            info = tarfile.TarInfo(name)
            info.size = 7
            file.addfile(info, io.BytesIO(b"content"))
    return buffer.getvalue() if kind == "tar" else gzip.compress(buffer.getvalue(), mtime=0)


def matlab() -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"labels": np.arange(9)}, do_compression=True)
    return buffer.getvalue()


RESULT = {
    **{"accuracy": 71.5, "macro_f1": 70.0, "trainer": "CoOp", "dataset": "OxfordPets", "seed": 1},
    **{
        "shots": 16,
        "classes": "base",
        "config_hash": "abc",
        "model_dir": "x/seed1",
        "versions": {},
    },
    "per_class": [{"classname": "cat", "accuracy": 50.0}],
}
SPLIT = {part: [["a/1.jpg", 0, "cat"], ["a/2.jpg", 1, "dog"]] for part in ("train", "val", "test")}
CONFIG = {"OPTIM": {"LR": 0.1, "NAME": "sgd"}, "INPUT": {"SIZE": [32, 32]}, "SEED": 1}
LOG = """** Arguments **
trainer: CoOp
dataset_config_file: configs/datasets/oxford_pets.yaml
config_file: configs/trainers/CoOp/vit.yaml
seed: 1
** Config **
DATASET:
  NUM_SHOTS: 16
  SUBSAMPLE_CLASSES: base
Evaluate on the *test* set
=> result
* total: 1,000
* correct: 700
* accuracy: 70.0%
"""


class Datum:
    """As the original code's few-shot samples hold it."""

    def __init__(self) -> None:
        self._impath, self._label, self._classname = "a.jpg", 0, "a"


def read_run(name: str) -> Callable[[Path], Any]:
    """A reader of a run's folder in which only the file `name` is damaged."""

    def read(path: Path) -> None:
        run = path.parent / "base2new/train_base/oxford_pets/shots_16/CoOp/vit/seed1"
        run.mkdir(parents=True, exist_ok=True)
        for other in run.iterdir():
            other.unlink()
        if name != "log.txt":
            (run / "result.json").write_text(json.dumps(RESULT))
            (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        os.replace(path, run / name)
        scores, _ = load_scores(path.parent)
        sorted(summarize(scores).scores, key=method_order)

    return read


def read_archive(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unpack(path, Path(folder))


def read_config(path: Path) -> None:
    get_cfg_default().merge_from_file(path)


def kinds() -> list[Kind]:
    state = small_clip().state_dict()
    checkpoint = {
        "state_dict": {"ctx": torch.ones(3, 4)},
        "epoch": 2,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3, 4)}}, "param_groups": []},
        "rng": {"torch": torch.get_rng_state()[:40]},
        "class_keys": ["a", "b"],
    }
    rows = {"train": [Datum()] * 3}
    from safetensors.torch import save

    backbone = lambda path: build_model(load_state_dict(path))  # noqa: E731
    return [
        Kind("checkpoint", saved(checkpoint), load_checkpoint),
        Kind("old", saved(checkpoint, _use_new_zipfile_serialization=False), load_checkpoint),
        Kind("original", saved(checkpoint["state_dict"]), read_original),
        Kind("torchscript", scripted(), read_tensors),
        Kind("backbone", saved(state, _use_new_zipfile_serialization=False), backbone),
        Kind("safetensors", save({"a": torch.ones(3), "b": torch.ones(2, 2).half()}), read_tensors),
        Kind("sample", pickle.dumps(rows, 2), read_sample),
        Kind("result", json.dumps(RESULT).encode(), read_run("result.json")),
        Kind("run's config", yaml.safe_dump(CONFIG).encode(), read_run("config.yaml")),
        Kind("log", LOG.encode(), read_run("log.txt")),
        Kind("config", yaml.safe_dump(CONFIG).encode(), read_config),
        Kind("metrics", b'{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.0}\n', read_json_lines),
        Kind("split", json.dumps(SPLIT).encode(), lambda path: read_split(str(path), "images")),
        Kind("table", b"path,class,split\na.jpg,cat,train\n", lambda path: read_csv(str(path))),
        Kind("mat", matlab(), lambda path: read_mat(str(path), "labels")),
        *(Kind(kind, archive(kind), read_archive) for kind in ("zip", "tar", "tar.gz")),
        *(
            Kind(kind, picture(kind), read_image)
            for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
        ),
    ]


# ------------------------------------------------------------ damage


def damage(kind: Kind, rng: random.Random) -> bytes:
    """Return the content of a damaged file."""
    if kind.name in ("result", "split") and rng.random() < 0.6:
        content = json.loads(kind.whole)
        change_value(content, rng)
        return json.dumps(content).encode("utf-8", "surrogatepass")
    if kind.name in ("config", "run's config") and rng.random() < 0.6:
        content = yaml.safe_load(kind.whole)
        change_value(content, rng)
        return json.dumps(content).encode("utf-8", "surrogatepass")
    if kind.name in ("checkpoint", "backbone") and rng.random() < 0.6:
        content = torch.load(io.BytesIO(kind.whole), weights_only=True)
        change_value(content, rng)
        return saved(content)
    data = bytearray(kind.whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(data) + 1) if data else 0
        length = rng.choice((1, 2, 4, 16, 200))
        how = rng.randrange(6)
        if how == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[place : place + length] = rng.randbytes(length)
        elif how == 2:
            del data[place:]
        elif how == 3:
            del data[place : place + length]
        elif how == 4:
            data[place:place] = data[place : place + length] * rng.choice((1, 3, 100))
        else:
            data[place : place + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"))
    return bytes(data)


def change_value(content: Any, rng: random.Random) -> None:
    """Put something odd in the place of a value, anywhere in it, or take it away."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = rng.choice(keys)
        inner = content[key]
        if isinstance(inner, (dict, list)) and len(inner) and rng.random() < 0.7:
            content = inner
            continue
        if rng.random() < 0.2:
            del content[key]
        elif isinstance(inner, torch.Tensor) and rng.random() < 0.7:
            shape = [rng.choice((0, 1, 2, 7, n, n)) for n in inner.shape]
            content[key] = torch.zeros(shape[: rng.randrange(len(shape) + 2)])
        else:
            content[key] = rng.choice(ODD)
        return


# ------------------------------------------------------------ running


def fuzz(number: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Read `number` damaged files; return (how many were read or refused, by kind), failures."""
    counts: Counter = Counter()
    failures: list[str] = []
    forbidden: list[str] = []
    active = [True]

    def watch(event: str, arguments: tuple) -> None:
        if not active[0]:
            return
        if event in SPAWNS and kind.name != "mat":
            forbidden.append(f"{event} {arguments[:1]}")
        if event == "open" and isinstance(arguments[0], str) and arguments[2] is not None:
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            inside = os.path.abspath(arguments[0]).startswith((str(folder), "/dev/null"))
            if writes and not inside and "__pycache__" not in arguments[0]:
                forbidden.append(f"write {arguments[0]}")

    sys.addaudithook(watch)
    warnings.simplefilter("ignore")  # Pillow's on damage it can read around
    each = kinds()
    for i in range(number):
        kind = each[i % len(each)]
        if kind.name == "mat" and i // len(each) % 20:  # a process each: a second
            kind = each[0]
        rng = random.Random(f"{seed} {i}")
        path = folder / f"{kind.name.replace(' ', '_')}.bin"
        path.write_bytes(damage(kind, rng))
        try:
            kind.read(path)
            counts[kind.name, "read"] += 1
        except (UserError, UnpackError) as error:
            counts[kind.name, "refused"] += 1
            if "weights_only" in str(error):
                failures.append(f"{kind.name} {i}: {error}")
        except Exception:
            failures.append(f"{kind.name} {i}: {traceback.format_exc()}")
        if forbidden:
            failures.append(f"{kind.name} {i}: {forbidden.pop()}")
    active[0] = False
    return counts, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, failures = fuzz(args.number, args.seed, Path(folder))
    for name in dict.fromkeys(name for name, _ in counts):
        print(f"{name:<14} {counts[name, 'read']:>6} read {counts[name, 'refused']:>6} refused")
    print(f"{args.number} inputs, {len(failures)} failures")
    for failure in failures[:20]:
        print(failure)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()

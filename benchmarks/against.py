#!/usr/bin/env python3
"""A public implementation's step and test batch, timed in a process of its own for speed.py.

    python benchmarks/speed.py --methods CoOp --against ../CoOp

The folder is one of the CoOp family: `train.py` with `extend_cfg`, `trainers/`, its own `clip/`. It
comes first among the places modules are imported from, and Dassl is this repository's. Its trainer
builds its model as it always does, from a file with the random weights that all paths here have.

This file is also that process: a line on its standard input is a call, its times a line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

REPO = Path(__file__).resolve().parents[1]


class Public:
    """A public trainer in its process; `close` ends it.

    Args:
        folder: of the implementation.
        given: plain values: trainer, classnames, batch, test_batch, precision, resolution, backbone
            (a state dict's file).

    Raises:
        UserError: it can't be built.
    """

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        command = [sys.executable, __file__, str(folder.resolve()), json.dumps(given)]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (until `close`)
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answer()

    def call(self, what: str) -> Any:
        """The `Time` of one "step" or "test"."""
        from benchmarks.timing import Time

        print(what, file=self._pipe(self.process.stdin), flush=True)
        return Time(*self._answer())

    def close(self) -> None:
        """End the process."""
        self._pipe(self.process.stdin).close()
        self.process.wait()
        self._pipe(self.process.stdout).close()
        self._errors.close()

    def _answer(self) -> list[float]:
        line = self._pipe(self.process.stdout).readline()
        if not line:
            from dassl.utils import UserError

            self.process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["it ended"])[-1]
            raise UserError(f"--against: {last}")
        return json.loads(line)

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def _trainer(folder: str, given: dict[str, Any]) -> Any:
    """Build the public trainer, without its data set."""
    sys.path[:] = [folder, str(REPO), *(p for p in sys.path if Path(p or ".").resolve() != REPO)]
    import torch

    # The folder's: it registers its trainers.
    train, clip = import_module("train"), import_module("clip.clip")
    from dassl.config import get_cfg_default
    from dassl.engine import TRAINER_REGISTRY

    clip._download = lambda *_, **__: given["backbone"]
    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    cfg.MODEL.BACKBONE.NAME = given["name"]
    cfg.INPUT.SIZE = (given["resolution"], given["resolution"])
    cfg.OUTPUT_DIR = tempfile.mkdtemp(prefix="against-")
    for node in cfg.TRAINER.values():
        if hasattr(node, "PREC"):
            node.PREC = given["precision"]
    names = given["classnames"]
    dataset = SimpleNamespace(classnames=names, num_classes=len(names), train_x=[], test=[])

    class Built(TRAINER_REGISTRY.get(given["trainer"])):  # type: ignore[misc]  # a class at run time
        def build_data_loader(self) -> None:
            self.dm = SimpleNamespace(dataset=dataset, num_classes=len(names), classnames=names)
            self.lab2cname = dict(enumerate(names))
            self.num_classes = len(names)
            self.train_loader_x = self.val_loader = self.test_loader = None

    trainer = Built(cfg)
    trainer.num_batches, trainer.batch_idx = 10**9, 0  # never an epoch's last step
    trainer.images = torch.Generator().manual_seed(0)
    return trainer


def main(folder: str, given: dict[str, Any]) -> None:
    """Answer calls until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the implementation prints isn't an answer
    trainer = _trainer(folder, given)
    import torch

    def drawn(number: int) -> torch.Tensor:
        side = given["resolution"]
        return torch.randn(number, 3, side, side, generator=trainer.images)

    def step() -> None:
        trainer.set_model_mode("train")
        label = torch.arange(given["batch"]) % len(given["classnames"])
        trainer.forward_backward({"img": drawn(given["batch"]), "label": label})

    @torch.no_grad()
    def test() -> None:
        trainer.set_model_mode("eval")
        trainer.model_inference(drawn(given["test_batch"]).to(trainer.device))

    print(json.dumps([]), file=answers, flush=True)
    calls = {"step": step, "test": test}
    for line in sys.stdin:
        # Not by timing.py: that imports this repository's clip.
        started, used = time.perf_counter(), time.process_time()
        calls[line.strip()]()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        taken = [time.perf_counter() - started, time.process_time() - used]
        print(json.dumps(taken), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

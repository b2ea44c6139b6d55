"""What a run leaves in its folder, beside checkpoints.

log.txt          what was printed
config.yaml      the resolved config
metrics.jsonl    a line per epoch
outcomes.npz     of each test image its label, the class predicted, and how sure that is
result.json      the evaluation
predictions.npz  its logits, on request
resume.pth.tar   only while the run is unfinished: everything it needs to go on
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dassl import __version__
from dassl.config import CfgNode, config_values
from dassl.config.identity import OTHER_MODEL, Identity, differences, is_identity, told
from dassl.utils import (
    UserError,
    atomic_copy,
    atomic_write,
    check_kind,
    check_percent,
    json_text,
    library_versions,
    load_checkpoint,
    lock_folder,
    peak_memory_mb,
    read_json,
    read_json_lines,
    remove_partial_files,
    save_plain,
    setup_logger,
    write_bytes,
    write_json,
)

OUTCOMES, PREDICTIONS = "outcomes.npz", "predictions.npz"
_RESUME_ENTRIES = {"models": dict, "best_result": float, "seconds": float}


def start_log(cfg: CfgNode) -> None:
    """Hold the run's folder and copy all output to its log.txt from here on.

    The log starts empty, unless the run goes on from where it was interrupted there.
    """
    lock_folder(cfg.OUTPUT_DIR)
    records = Records(cfg)
    goes_on = records.goes_on_here and records.resume_path.exists() and not cfg.OVERWRITE
    setup_logger(cfg.OUTPUT_DIR, append=goes_on)


class Records:
    """The files of one run. Each is written whole or not at all."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.folder = Path(cfg.OUTPUT_DIR)
        self.metrics_path = self.folder / "metrics.jsonl"
        self.resume_path = self.folder / "resume.pth.tar"
        self.earlier_path = self.folder / "resume-earlier.pth.tar"
        self.together = 1  # runs that are trained in step, each with records of its own
        self._place = 0, 0  # of the last record
        self.epochs: list[dict[str, Any]] = []
        self._dumped: tuple[dict[str, Any], str] | None = None

    def unfinished(self) -> dict[str, Any] | None:
        """Return the state of an interrupted run in cfg.RESUME, or else in the run's folder."""
        path = Path(self.cfg.RESUME or self.folder) / self.resume_path.name
        if not path.exists():
            return None
        state = load_checkpoint(path)
        for name, kind in _RESUME_ENTRIES.items():
            if name not in state:
                raise UserError(f"{path} can't be gone on from: it has no entry {name!r}")
            check_kind(state[name], kind, f"{path}: its entry {name!r}")
        if self.goes_on_here:
            self._place = _place(state)
        return state

    def places(self) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """Return the run's place, (epochs, batches), and the one it can step back to, if any.

        Runs in step write their records one after the other; a kill in between leaves some of them
        a place ahead.
        """
        if not self.resume_path.exists():
            return (0, 0), None
        state = load_checkpoint(self.resume_path)
        earlier = state.get("earlier")
        if earlier and any(earlier):
            kept = self.earlier_path.exists() and _place(load_checkpoint(self.earlier_path))
            earlier = kept if kept == tuple(earlier) else None
        return _place(state), earlier and tuple(earlier)

    def step_back(self) -> None:
        """Go on from the earlier place that `places` told."""
        if any(self.places()[1] or ()):
            os.replace(self.earlier_path, self.resume_path)
        else:
            self.resume_path.unlink()

    def recorded(self) -> tuple[str, Any]:
        """Return what the folder holds, "result", "unfinished run" or "", and its identity."""
        if self.resume_path.exists():
            return "unfinished run", load_checkpoint(self.resume_path).get("identity")
        path = self.folder / "result.json"
        if path.exists():
            result = read_json(path, dict)
            try:
                check_percent(result.get("accuracy", 0.0), "the accuracy")
            except UserError:
                return "", None  # no result
            return "result", result.get("identity")
        return "", None

    def standing(self, identity: Identity) -> str:
        """Return "complete", "unfinished" or "" for a run of this identity in this folder.

        Raises UserError if the folder holds another run's work: it isn't destroyed unasked.
        """
        what, recorded = self.recorded()
        if not what:
            return ""
        if is_identity(recorded):
            found = differences(recorded, identity)
            if found == [OTHER_MODEL]:  # trained anew since: the test is repeated
                print(f"{self.folder} holds the test of an earlier model; testing this one")
                return ""
            differ = told(found)
        else:
            differ = "it doesn't say what its numbers depend on"
        if not differ:
            return "complete" if what == "result" else "unfinished"
        raise UserError(
            f"{self.folder} holds another run's {what} ({differ}): choose another --output-dir, or "
            "say --overwrite to replace it"
        )

    @property
    def goes_on_here(self) -> bool:
        """Whether what the run would go on from lies in its own folder."""
        return not self.cfg.RESUME or Path(self.cfg.RESUME).resolve() == self.folder.resolve()

    def begin(self, model_names: list[str], epochs_done: int, goes_on: bool = False) -> None:
        """Hold the folder, and clear it of what a killed or another run left there.

        Of a run that goes on, the records of its first `epochs_done` epochs stay; `goes_on` says
        that it does where that is none.
        """
        lock_folder(self.folder)
        for folder in (self.folder, *(self.folder / name for name in model_names)):
            remove_partial_files(folder)
        if not ((epochs_done or goes_on) and self.goes_on_here):
            self._clear(model_names)
        (self.folder / "result.json").unlink(missing_ok=True)
        for name in (OUTCOMES, PREDICTIONS):
            (self.folder / name).unlink(missing_ok=True)
        if epochs_done:
            self._take_over(model_names, epochs_done)
        self.write_config()

    def _clear(self, model_names: list[str]) -> None:
        old = [self.metrics_path, self.resume_path, self.earlier_path]
        for name in model_names:
            for pattern in ("model.pth.tar-*", "model-best.pth.tar", "checkpoint"):
                old += (self.folder / name).glob(pattern)
        start = self.cfg.MODEL.INIT_WEIGHTS
        for path in old:
            if not start or path.resolve() != Path(start).resolve():
                path.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)

    def _take_over(self, model_names: list[str], epochs_done: int) -> None:
        """Take the records of the epochs done, and the best models, from where the run goes on."""
        source = Path(self.cfg.RESUME or self.folder)
        path = source / self.metrics_path.name
        epochs = read_json_lines(path) if path.exists() else []
        for epoch in epochs:
            check_kind(epoch.get("epoch"), int, f"{path}: the number of an epoch")
        self.epochs = [epoch for epoch in epochs if epoch["epoch"] <= epochs_done]
        self._write_epochs()
        if not self.goes_on_here:
            for name in model_names:
                best = Path(name) / "model-best.pth.tar"
                if (source / best).is_file():
                    atomic_copy(source / best, self.folder / best)

    def write_config(self) -> None:
        """Write config.yaml."""
        lock_folder(self.folder)
        values = config_values(self.cfg)
        if self._dumped is None or self._dumped[0] != values:
            self._dumped = values, self.cfg.dump()  # which takes its time
        with atomic_write(self.folder / "config.yaml") as file:
            file.write(self._dumped[1])

    def add_epoch(self, epoch: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        self.epochs.append(epoch)
        self._write_epochs()

    def _write_epochs(self) -> None:
        with atomic_write(self.metrics_path) as file:
            file.writelines(json_text(line) + "\n" for line in self.epochs)

    def write_resume(self, state: dict[str, Any]) -> None:
        """Write what the run needs to go on; of runs in step the last record stays beside it."""
        earlier = None
        if self.together > 1:
            earlier = list(self._place)
            if self.resume_path.exists():
                atomic_copy(self.resume_path, self.earlier_path)
        save_plain({**state, "earlier": earlier}, self.resume_path)
        self._place = _place(state)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json. Raises UserError for an accuracy that is none."""
        if "accuracy" in result:
            check_percent(result["accuracy"], "the accuracy")
        write_json(result, self.folder / "result.json")

    def write_predictions(self, predictions: dict[str, np.ndarray]) -> None:
        """Write predictions.npz."""
        self._write_arrays(predictions, PREDICTIONS)

    def write_outcomes(self, outcomes: dict[str, np.ndarray]) -> None:
        """Write outcomes.npz."""
        self._write_arrays(outcomes, OUTCOMES)

    def _write_arrays(self, arrays: dict[str, np.ndarray], name: str) -> None:
        buffer = io.BytesIO()  # of a full disk, numpy and zipfile make more than one exception
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stub's mistake
        write_bytes(buffer.getbuffer(), self.folder / name)

    def finish(self) -> None:
        """The run is complete: nothing is left to go on from."""
        self.resume_path.unlink(missing_ok=True)
        self.earlier_path.unlink(missing_ok=True)

    def circumstances(self, dataset: Any = None) -> dict[str, Any]:
        """Return what result.json says about any run: what ran, on what, with which versions."""
        cfg = self.cfg
        return {
            "trainer": cfg.TRAINER.NAME,
            "dataset": cfg.DATASET.NAME,
            "dataset_label": cfg.DATASET.LABEL,
            "seed": cfg.SEED,
            "shots": cfg.DATASET.NUM_SHOTS,
            "classes": cfg.DATASET.SUBSAMPLE_CLASSES,
            "backbone": cfg.MODEL.BACKBONE.NAME,
            "backbone_sha256": None,
            "fewshot_hash": getattr(dataset, "fewshot_hash", None),
            "split_hash": getattr(dataset, "split_hash", None),
            "versions": {"dept": __version__, **library_versions()},
            "peak_memory_mb": peak_memory_mb(),
        }


def _place(state: dict[str, Any]) -> tuple[int, int]:
    """How many epochs, and batches of the next one, a record's run has behind it.

    Whoever takes the run up finds what is wrong with the record; here that counts as none.
    """
    models, midway = state["models"], state.get("midway")
    epochs = [_count(model, "epoch") for model in models.values()]
    return max(epochs, default=0), _count(midway, "batches")


def _count(entries: Any, name: str) -> int:
    value = entries.get(name) if isinstance(entries, dict) else None
    return value if isinstance(value, int) else 0

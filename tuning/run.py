"""A run: whether a folder holds it, and the model that it left there.

    from tuning.run import open_run

    run = open_run("output/…/seed1")
    logits = run.logits([run.preprocess(image)])     # (1,C), over run.classnames

Identities are compared here and nowhere else (what they hold: dassl/config/identity.py).

Shape letters: method.py's.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl.config import CfgNode
from dassl.utils import (
    UserError,
    check_checkpoint,
    check_kind,
    find_checkpoint,
    load_checkpoint,
    read_json,
)
from tuning.defaults import read_config

if TYPE_CHECKING:
    import torch

    from tuning.method import Classes, Features, Method


# Whether a folder holds a run.


def standing(cfg: CfgNode, tested: str | os.PathLike | None = None) -> str:
    """Return "complete", "unfinished" or "" for the run of this config in cfg.OUTPUT_DIR.

    The data are read only where the folder holds something to compare with.

    Args:
        cfg: of the run.
        tested: the checkpoint file that it tests, if it trains nothing.

    Raises:
        UserError: the folder holds another run's work, and cfg.OVERWRITE isn't set.
    """
    from dassl.engine import Records

    records = Records(cfg)
    if cfg.OVERWRITE or not records.recorded()[0]:
        return ""
    return records.standing(identity_of(cfg, tested))


def identity_of(cfg: CfgNode, tested: str | os.PathLike | None = None) -> dict[str, Any]:
    """What the numbers of the run of this config depend on. Reads its data."""
    import datasets  # noqa: F401 - registers the data sets
    from dassl.data.datasets import build_dataset
    from dassl.engine import TRAINER_REGISTRY

    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    state = random.getstate()
    quiet = cfg.clone()
    quiet.defrost()
    quiet.VERBOSE = False  # the run itself tells
    try:
        if cfg.SEED >= 0:
            random.seed(cfg.SEED)  # as the run itself does before it reads
        dataset = build_dataset(quiet)
    finally:
        random.setstate(state)
    return trainer_class.identity_of(cfg, dataset, tested)


def tested_file(cfg: CfgNode, folder: str | os.PathLike, epoch: int | None = None) -> Path:
    """The checkpoint of the run in `folder` that an evaluation by this config tests.

    Raises:
        UserError: there is none.
    """
    from dassl.engine import TRAINER_REGISTRY

    name = getattr(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), "model_name", "model")
    return find_checkpoint(folder, name, epoch)


def is_done(arguments: Sequence[str]) -> bool:
    """Whether the result of `python train.py <arguments>`, one run, is there.

    Raises:
        UserError: its folder holds another run's work.
    """
    from tuning.options import parse_args, setup_cfg

    args = parse_args(list(arguments))
    cfg = setup_cfg(args, tell=False)
    if not (Path(cfg.OUTPUT_DIR) / "result.json").is_file():
        return False  # nothing to compare with: the data needn't be read
    tested = None
    if args.eval_only and trainer_of(cfg).trains:
        try:
            tested = tested_file(cfg, args.model_dir, args.load_epoch)
        except UserError:
            return False  # its model is still to be trained
    return standing(cfg, tested) == "complete"


def trainer_of(cfg: CfgNode) -> Any:
    """The registered trainer of a config."""
    from dassl.engine import TRAINER_REGISTRY

    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)


# The model that a run left.


def open_run(path: str | os.PathLike, backbone: str = "") -> Run:
    """The run in a folder, or the one that a checkpoint file belongs to.

    Args:
        path: train.py's --output-dir, or `<it>/<model name>/model.pth.tar-<epoch>`.
        backbone: CLIP's name or file, if not the run's. A file that a run names is followed only
            if it has the SHA-256 that the run recorded.

    Raises:
        UserError: there is no such run.
    """
    path = Path(path)
    checkpoint = path if path.is_file() else None
    folder = path.parent.parent if checkpoint is not None else path
    return Run(folder, read_config(folder), checkpoint, backbone)


def run_of_checkpoint(
    path: str | os.PathLike, options: Sequence[str], classes: Sequence[str]
) -> Run:
    """A checkpoint file without a run, such as the original code's, as the model of a run.

    Args:
        path: the file.
        options: train.py's words, which say what the file doesn't: --trainer, --config-file, …
        classes: the names it was trained on, in their order, as it has none.

    Raises:
        UserError: the file can't be read, or is of another method.
    """
    from tuning import original_checkpoints
    from tuning.options import parse_args, setup_cfg

    cfg = setup_cfg(parse_args(list(options)), tell=False)
    run = Run(Path(path).parent, cfg, Path(path), cfg.MODEL.BACKBONE.NAME)
    checkpoint = original_checkpoints.read(path)
    import datasets  # noqa: F401 - registers the data sets
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase

    name = cfg.DATASET.NAME
    template = run.trainer_class.template_of(
        cfg, DATASET_REGISTRY.get(name) if name else DatasetBase
    )
    named = {"class_keys": list(classes), "classnames": list(classes), "template": template}
    run.checkpoint = {**named, **checkpoint}  # in the place of the cached property
    return run


@dataclass
class Run:
    """A finished or interrupted run, read when asked for."""

    folder: Path
    cfg: CfgNode
    file: Path | None = None  # the checkpoint meant, if not the one it deploys
    backbone: str = ""  # instead of the run's
    _methods: dict[Any, Method] = field(default_factory=dict, repr=False)

    @cached_property
    def trainer_class(self) -> Any:
        """The registered trainer."""
        from dassl.engine import TRAINER_REGISTRY

        return TRAINER_REGISTRY.get(self.cfg.TRAINER.NAME)

    @cached_property
    def checkpoint_path(self) -> Path | None:
        """The file with the model; None for a method that trains nothing."""
        if self.file is not None or not self.trainer_class.trains:
            return self.file
        return find_checkpoint(self.folder, getattr(self.trainer_class, "model_name", "model"))

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """What the checkpoint holds; {} for a method that trains nothing."""
        if self.checkpoint_path is None:
            return {}
        checkpoint = load_checkpoint(self.checkpoint_path)
        check_checkpoint(checkpoint, self.checkpoint_path)
        return checkpoint

    @cached_property
    def result(self) -> dict[str, Any]:
        """What result.json says; {} if the run isn't finished."""
        path = self.folder / "result.json"
        return read_json(path, dict) if path.is_file() else {}

    @property
    def identity(self) -> dict[str, Any] | None:
        """What the run's numbers depend on; None for a run of before there were identities."""
        return self.checkpoint.get("identity") or self.result.get("identity")

    @property
    def epoch(self) -> int | None:
        """Epochs of training behind the model."""
        return self.checkpoint.get("epoch")

    @cached_property
    def _recorded_classes(self) -> tuple[list[str], list[str]]:
        where = self.checkpoint_path or self.folder / "result.json"
        keys = self.checkpoint.get("class_keys") or self.result.get("class_keys")
        if not keys:
            raise UserError(f"{self.folder} doesn't say its classes: name them")
        names = self.checkpoint.get("classnames") or self.result.get("classnames") or keys
        for entry, values in (("class_keys", keys), ("classnames", names)):
            for value in check_kind(values, list, f"{where}: its entry {entry!r}"):
                check_kind(value, str, f"{where}: a class's name")
        return list(names), list(keys)

    @property
    def classnames(self) -> list[str]:
        """The C names of the classes it was trained on. Raises UserError if it doesn't say."""
        return self._recorded_classes[0]

    @property
    def class_keys(self) -> list[str]:
        """Their stable identities."""
        return self._recorded_classes[1]

    @property
    def template(self) -> str:
        """The prompt template with one {}, as the run resolved it."""
        import datasets  # noqa: F401 - registers the data sets
        from dassl.data.datasets import DATASET_REGISTRY

        recorded = self.checkpoint.get("template") or self.result.get("template")
        if recorded:
            return recorded
        template = self.trainer_class.template_of(
            self.cfg, DATASET_REGISTRY.get(self.cfg.DATASET.NAME)
        )
        print(f"{self.folder} doesn't say its template; taken for the data set's: {template!r}")
        return template

    @cached_property
    def preprocess(self) -> Callable[[Any], torch.Tensor]:
        """The test transform: a PIL image → (3,I,I)."""
        from dassl.data.transforms import build_transform

        with contextlib.redirect_stdout(io.StringIO()):  # what a training run would tell
            preprocess: Any = build_transform(self.cfg, is_train=False)
            return preprocess

    def backbone_name(self) -> str:
        """The backbone to load: the one asked for, or the run's if that can be trusted.

        A config may come from somebody else. A file that it names is taken only if it is, by the
        SHA-256 that the run recorded, the very file it was trained on.

        Raises:
            UserError: it isn't, or can't be told.
        """
        from clip import available_models
        from clip.architecture import split_name
        from clip.clip import find_backbone

        name = self.cfg.MODEL.BACKBONE.NAME
        if self.backbone or name in available_models() or split_name(name):
            return self.backbone or name
        say = "say --backbone NAME or FILE to choose one"
        known = self.checkpoint.get("backbone_sha256") or self.result.get("backbone_sha256")
        if not isinstance(known, str):
            raise UserError(
                f"{self.folder} was trained on the backbone file {name!r}, but doesn't say which "
                f"SHA-256 it had, so it isn't followed: {say}"
            )
        if not os.path.isfile(name):
            raise UserError(
                f"{self.folder} was trained on the backbone {name!r}, which isn't here: {say}"
            )
        found = find_backbone(name, self.cfg.MODEL.BACKBONE.ARCHITECTURE).digest
        if found != known:
            raise UserError(
                f"{name} is not the backbone that {self.folder} was trained on (SHA-256 "
                f"{found[:12]}…, recorded {known[:12]}…): {say}"
            )
        return name

    def sentences_file(self) -> str:
        """The file of sentences that its features are made of, or "". Raises as `recorded_file`."""
        from tuning.sentences import recorded_file

        return recorded_file(self)

    def method(self, classes: Sequence[str] | Classes | None = None) -> Method:
        """The trained method on its encoders, in eval mode.

        Args:
            classes: the names to choose from, or `Classes` with their keys; by default those it was
                trained on. Others leave out what is bound to the trained ones, such as DePT's head,
                which is said.

        Raises:
            UserError: a class is named twice, or the checkpoint doesn't fit.
        """
        chosen = self._chosen(classes)
        key = tuple(zip(chosen.keys, chosen.names, strict=True))
        if key not in self._methods:
            self._methods[key] = self._build(chosen)
        return self._methods[key]

    def _chosen(self, classes: Sequence[str] | Classes | None) -> Classes:
        from tuning.method import Classes

        if isinstance(classes, Classes):
            return classes
        names = self.classnames if classes is None else list(classes)
        keys = self.class_keys if classes is None else names
        if len(set(keys)) < len(keys):
            raise UserError("a class is named twice")
        import datasets  # noqa: F401 - registers the data sets
        from dassl.data.datasets import DATASET_REGISTRY
        from tuning.further_data import other_templates_of

        others = other_templates_of(self.cfg, DATASET_REGISTRY.get(self.cfg.DATASET.NAME))
        return Classes(names, keys, self.template, other_templates=others)

    def _build(self, classes: Classes) -> Method:
        import torch

        from tuning.loading import load_encoders, load_into

        if not hasattr(self.trainer_class, "method_class"):
            raise UserError(f"{self.cfg.TRAINER.NAME} is no method of this code: it gives no model")
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.NAME = self.backbone_name()
        cfg.DATASET.SENTENCES = self.sentences_file()
        cfg.freeze()
        device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        with contextlib.redirect_stdout(io.StringIO()):  # what a training run would tell
            precision = self.trainer_class.precision_of(cfg, device)
            encoders, sha256 = load_encoders(cfg, precision, device)
            method = self.trainer_class.build_method(cfg, encoders, classes)
            method = method.to(device).freeze().eval()
            if self.checkpoint_path is not None:
                load_into(method, self.checkpoint, str(self.checkpoint_path), sha256)
        if method.left_out:
            print(method.left_out, file=sys.stderr)
        return method

    def logits(
        self,
        images: Sequence[torch.Tensor] | torch.Tensor,
        classes: Sequence[str] | Classes | None = None,
    ) -> torch.Tensor:
        """(B,C) logits of preprocessed images (B,3,I,I), or a list of (3,I,I), fp32 on the CPU."""
        import torch

        features = self.features(images, classes)
        with torch.no_grad():
            return self.method(classes).logits(features).float().cpu()

    def features(
        self,
        images: Sequence[torch.Tensor] | torch.Tensor,
        classes: Sequence[str] | Classes | None = None,
    ) -> Features:
        """What the method makes of preprocessed images and of the classes."""
        import torch

        from tuning.loading import autocast

        method = self.method(classes)
        device = method.encoders.logit_scale.device
        with contextlib.redirect_stdout(io.StringIO()):
            precision = self.trainer_class.precision_of(self.cfg, device)
        batch = images if torch.is_tensor(images) else torch.stack(list(images))
        with torch.no_grad(), autocast(device, precision):
            return method.features(batch.to(device))

"""Classify images with a trained model.

    python predict.py photo.jpg --model output/…/seed1               a run's folder or a checkpoint
    python predict.py photos/ 'more/*.png' --model RUN --top 3 --format csv --out guesses.csv
    python predict.py photo.jpg --model RUN --classes 'cat,dog,axolotl'

From Python:

    from tuning.prediction import Predictor
    predictor = Predictor("output/…/seed1")
    print(predictor(["photo.jpg"], top=3))
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dassl.utils import (
    NOT_FINITE,
    UserError,
    atomic_write,
    json_text,
    read_image,
    read_json,
    read_text,
    user_errors,
)
from dassl.utils.cli import Parser, output_file, positive, write_csv_rows

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"}


@dataclass(frozen=True)
class Guess:
    """A class and its probability, from 0 to 1."""

    classname: str
    probability: float


def read_run(model: str | os.PathLike) -> tuple[Path, int | None, Any]:
    """Return (run folder, epoch, its config) for a run's folder or a checkpoint file in it.

    Raises UserError if there is no such thing, or no config.yaml with it.
    """
    import trainers
    from dassl.config import get_cfg_default

    path, epoch = Path(model), None
    if path.is_file():
        number = path.name.rpartition("-")[2]
        epoch = int(number) if number.isdigit() else None
        path = path.parent.parent  # <run>/<model name>/model.pth.tar-<epoch>
    config = path / "config.yaml"
    if not config.is_file():
        raise UserError(
            f"{model} is no run of train.py: there is no {config}; give the folder that was its "
            "--output-dir, or a checkpoint in it"
        )
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cache = cfg.DATALOADER.FEATURE_CACHE
    cfg.merge_from_file(str(config))
    # Paths of the machine that trained it, or of whoever made the run: nothing here needs them.
    cfg.DATALOADER.FEATURE_CACHE = cache
    cfg.MODEL.INIT_WEIGHTS = cfg.RESUME = cfg.OUTPUT_DIR = ""
    return path, epoch, cfg


def choose_backbone(folder: Path, epoch: int | None, cfg: Any, backbone: str = "") -> str:
    """Return the backbone to take for a run: `backbone` if given, else what its config names.

    A config may come from somebody else. A file that it names is only taken if it is, by the
    SHA-256 that the run recorded, the very file it was trained on. Raises UserError otherwise.
    """
    from clip import available_models
    from dassl.utils import file_sha256

    if backbone:
        return backbone
    name = cfg.MODEL.BACKBONE.NAME
    if name in available_models():
        return name
    say = "say --backbone NAME or FILE to choose one"
    known = _recorded_backbone(folder, epoch)
    if not known:
        raise UserError(
            f"{folder} was trained on the backbone file {name!r}, but doesn't say which SHA-256 it "
            f"had, so it isn't followed: {say}"
        )
    if not os.path.isfile(name):
        raise UserError(f"{folder} was trained on the backbone {name!r}, which isn't here: {say}")
    found = file_sha256(name)
    if found != known:
        raise UserError(
            f"{name} is not the backbone that {folder} was trained on (SHA-256 {found[:12]}…, "
            f"recorded {known[:12]}…): {say}"
        )
    return name


def _recorded_backbone(folder: Path, epoch: int | None) -> str:
    """Return the SHA-256 of a run's backbone as its result or its checkpoint has it, or ""."""
    from dassl.utils import load_checkpoint

    result = folder / "result.json"
    recorded = read_json(result, dict).get("backbone_sha256") if result.is_file() else None
    if not recorded:
        for path in _checkpoints(folder, epoch):
            recorded = recorded or load_checkpoint(path).get("backbone_sha256")
    return recorded if isinstance(recorded, str) else ""


def _checkpoints(folder: Path, epoch: int | None) -> list[Path]:
    pattern = "*/model*.pth.tar*" if epoch is None else f"*/model.pth.tar-{epoch}"
    return sorted(folder.glob(pattern))


class Predictor:
    """A trained model that classifies image files.

    Args:
        model: the folder of a run, or a checkpoint file in it.
        classes: the class names to choose from; by default those the model was trained on.
        backbone: instead of the run's: a CLIP model's name, or its file on this machine.

    Raises:
        UserError: if there is no such run, or it doesn't say its classes and none are given.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        classes: Sequence[str] | None = None,
        backbone: str = "",
    ) -> None:
        import datasets  # noqa: F401 - registers the data sets
        from dassl.data.datasets import DATASET_REGISTRY
        from dassl.data.transforms import build_transform
        from dassl.engine import TRAINER_REGISTRY

        folder, epoch, cfg = read_run(model)
        cfg.MODEL.BACKBONE.NAME = choose_backbone(folder, epoch, cfg, backbone)
        cfg.VERBOSE = False
        cfg.freeze()
        names, keys = (list(classes), list(classes)) if classes else trained_classes(folder, epoch)
        if len(set(keys)) < len(keys):
            raise UserError("a class is named twice")
        reader = DATASET_REGISTRY.get(cfg.DATASET.NAME)
        data = SimpleNamespace(
            classnames=names,
            class_keys=keys,
            label_space={},
            num_classes=len(names),
            num_source_domains=0,
            lab2cname=dict(enumerate(names)),
            dataset=SimpleNamespace(
                classnames=names,
                template=reader.template,
                other_templates=reader.other_templates,
                template_joins_ensembles=reader.template_joins_ensembles,
            ),
            train_loader_x=None,
            train_loader_u=None,
            val_loader=None,
            test_loader=None,
        )
        trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
        with contextlib.redirect_stdout(io.StringIO()):  # what a training run would tell
            self.trainer = _without_data(trainer_class, data)(cfg)
            self.trainer.load_model(folder, epoch)
        self.trainer.set_model_mode("eval")
        self.classes = names
        self.transform = build_transform(cfg, is_train=False)
        self.batch_size = cfg.DATALOADER.TEST.BATCH_SIZE

    def __call__(self, images: Sequence[Any], top: int = 5) -> list[list[Guess]]:
        """Return the `top` likeliest classes of each image, likeliest first.

        Args:
            images: paths of image files, or PIL images.
            top: how many classes.

        Raises:
            UserError: if a file is no image.
        """
        import torch

        guesses = []
        for start in range(0, len(images), self.batch_size):
            views = []
            for image in images[start : start + self.batch_size]:
                is_path = isinstance(image, (str, os.PathLike))
                views.append(self.transform(read_image(image) if is_path else image.convert("RGB")))
            with torch.no_grad():
                logits = self.trainer.model_inference(torch.stack(views).to(self.trainer.device))
            if not logits.isfinite().all():
                raise UserError(NOT_FINITE)
            best = logits.float().softmax(dim=-1).topk(min(top, len(self.classes)))
            guesses += [
                [Guess(self.classes[i], p) for i, p in zip(labels, values, strict=True)]
                for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        return guesses


def _without_data(trainer_class: type, data: SimpleNamespace) -> type:
    """Return the trainer with class names in place of a data set."""

    class Deployed(trainer_class):
        def build_data_loader(self) -> None:
            self.dm = data
            for name in ("num_classes", "num_source_domains", "lab2cname"):
                setattr(self, name, getattr(data, name))
            for name in ("train_loader_x", "train_loader_u", "val_loader", "test_loader"):
                setattr(self, name, None)

    return Deployed


def trained_classes(folder: Path, epoch: int | None = None) -> tuple[list[str], list[str]]:
    """Return (names, keys) of the classes that the run in `folder` was trained on."""
    from dassl.utils import load_checkpoint

    for path in _checkpoints(folder, epoch):
        checkpoint = load_checkpoint(path)
        keys = checkpoint.get("class_keys")
        if keys:
            return list(checkpoint.get("classnames") or keys), list(keys)
    raise UserError(f"{folder} holds no checkpoint that says its classes: name them, --classes")


def find_images(sources: Iterable[str]) -> list[str]:
    """Return the image files that files, folders (searched to the bottom) and globs stand for.

    Raises UserError for a source that gives none.
    """
    found: list[str] = []
    for source in sources:
        if os.path.isdir(source):
            files = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in IMAGES)
        elif os.path.exists(source):
            files = [source]
        else:
            files = sorted(p for p in glob.glob(source, recursive=True) if os.path.isfile(p))
        if not files:
            raise UserError(f"no image at {source}")
        found += map(str, files)
    return list(dict.fromkeys(found))


def class_list(text: str) -> list[str]:
    """Return the names of "a,b,c", or of a file with one a line."""
    if os.path.isfile(text):
        lines = read_text(text).splitlines()
    else:
        lines = text.split(",")
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no class name in it")
    return names


def as_table(paths: Sequence[str], guesses: Sequence[Sequence[Guess]]) -> str:
    """Return a block per image."""
    blocks = []
    for path, best in zip(paths, guesses, strict=True):
        lines = [f"  {100 * guess.probability:6.2f} %  {guess.classname}" for guess in best]
        blocks.append("\n".join([path, *lines]))
    return "\n".join(blocks)


def as_csv(paths: Sequence[str], guesses: Sequence[Sequence[Guess]]) -> str:
    """Return a line per image and class."""
    out = io.StringIO()
    rows = [
        [path, rank, guess.classname, guess.probability]
        for path, best in zip(paths, guesses, strict=True)
        for rank, guess in enumerate(best, start=1)
    ]
    write_csv_rows(out, [["path", "rank", "class", "probability"], *rows])
    return out.getvalue().rstrip("\n")


def as_json(paths: Sequence[str], guesses: Sequence[Sequence[Guess]]) -> str:
    """Return a list of {"path", "predictions": [{"class", "probability"}]}."""
    entries = [
        {
            "path": path,
            "predictions": [{"class": g.classname, "probability": g.probability} for g in best],
        }
        for path, best in zip(paths, guesses, strict=True)
    ]
    return json_text(entries, indent=2)


FORMATS = {"table": as_table, "csv": as_csv, "json": as_json}


def classify(
    predictor: Predictor, paths: Sequence[str], top: int
) -> tuple[list[str], list[list[Guess]]]:
    """Return the files that are images, and their guesses; say of the others why not.

    Raises UserError if none is an image.
    """
    done, guesses = [], []
    for start in range(0, len(paths), predictor.batch_size):
        images = []
        for path in paths[start : start + predictor.batch_size]:
            try:
                images.append(read_image(path))
                done.append(path)
            except UserError as error:
                if len(paths) == 1:
                    raise
                print(f"skipped: {error}", file=sys.stderr)
        guesses += predictor(images, top)
    if not done:
        raise UserError("none of the files is an image")
    return done, guesses


@user_errors()
def main(argv: list[str] | None = None) -> None:
    """Read the command line, classify, print."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files, folders, globs")
    parser.add_argument("--model", required=True, help="a run's folder, or a checkpoint in it")
    parser.add_argument("--top", type=positive, default=5, help="classes per image (5)")
    parser.add_argument(
        "--classes", type=class_list, help="names to choose from: a,b,c or a file, one a line"
    )
    parser.add_argument("--backbone", default="", help="CLIP's name or file, if not the run's")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument(
        "--out", type=output_file, metavar="FILE", help="write there, not to the terminal"
    )
    args = parser.parse_args(argv)
    paths = find_images(args.images)
    predictor = Predictor(args.model, args.classes, args.backbone)
    paths, guesses = classify(predictor, paths, args.top)
    text = FORMATS[args.format](paths, guesses)
    if args.out:
        with atomic_write(args.out) as file:
            file.write(text + "\n")
    else:
        print(text)

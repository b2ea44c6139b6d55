r"""Classify images with a trained model.

    python predict.py photo.jpg --model output/…/seed1               a run's folder or a checkpoint
    python predict.py photos/ 'more/*.png' --model RUN --top 3 --format csv --out guesses.csv
    python predict.py photo.jpg --model RUN --classes 'cat,dog,axolotl'
    python predict.py photo.jpg --model model.pth.tar-50 --classes names.txt --trainer CoOp \
        --config-file configs/trainers/CoOp/vit_b16_ep10.yaml        a file of the original code

From Python:

    from tuning.prediction import Predictor
    predictor = Predictor("output/…/seed1")
    print(predictor(["photo.jpg"], top=3))
"""

from __future__ import annotations

import argparse
import csv
import glob
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dassl.utils import (
    NOT_FINITE,
    UserError,
    atomic_write,
    json_text,
    read_image,
    read_text,
    user_errors,
)
from dassl.utils.cli import Parser, output_file, positive, write_csv_rows
from dassl.utils.images import DEEP

if TYPE_CHECKING:
    from tuning.run import Run


@dataclass(frozen=True)
class Guess:
    """A class and its probability, from 0 to 1."""

    classname: str
    probability: float


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
        from tuning.run import open_run

        self.take(open_run(model, backbone), classes)

    def take(self, run: Run, classes: Sequence[str] | None = None) -> None:
        """Classify by a run's model. Raises UserError as the class does."""
        self.run = run
        self.classes = list(classes) if classes else self.run.classnames
        # None: those it was trained on, with whatever is bound to them.
        self.asked = self.classes if classes else None
        self.run.method(self.asked)  # what can't be done is said before an image is read
        self.batch_size = self.run.cfg.DATALOADER.TEST.BATCH_SIZE

    def __call__(self, images: Sequence[Any], top: int = 5) -> list[list[Guess]]:
        """Return the `top` likeliest classes of each image, likeliest first.

        Args:
            images: paths of image files, or PIL images.
            top: how many classes.

        Raises:
            UserError: if a file is no image.
        """
        guesses = []
        for start in range(0, len(images), self.batch_size):
            views = []
            for image in images[start : start + self.batch_size]:
                is_path = isinstance(image, (str, os.PathLike))
                image = read_image(image) if is_path else image.convert("RGB")
                views.append(self.run.preprocess(image))
            logits = self.run.logits(views, self.asked)
            if not logits.isfinite().all():
                raise UserError(NOT_FINITE)
            best = logits.softmax(dim=-1).topk(min(top, len(self.classes)))
            guesses += [
                [Guess(self.classes[i], p) for i, p in zip(labels, values, strict=True)]
                for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        return guesses


def find_images(sources: Iterable[str]) -> list[str]:
    """Return the image files that files, folders (searched to the bottom) and globs stand for.

    What is passed over in folders is counted in a line. Raises UserError for a source that gives
    none.
    """
    from datasets.walking import describe_passed, images_below

    found: list[str] = []
    for source in sources:
        if os.path.isdir(source):
            passed: Counter[str] = Counter()
            files = [os.path.join(source, name) for name in images_below(source, passed)]
            if told := describe_passed(passed):
                print(f"{source}: passed over {told}", file=sys.stderr)
        elif os.path.exists(source):
            files = [source]
        else:
            files = sorted(p for p in glob.glob(source, recursive=True) if os.path.isfile(p))
        if not files:
            raise UserError(f"no image at {source}")
        found += files
    return list(dict.fromkeys(found))


def class_list(text: str) -> list[str]:
    """Return the names of "a,b,c", or of a file with one a line; a name with a comma in quotes."""
    if os.path.isfile(text):
        lines = read_text(text).splitlines()
    else:
        lines = next(csv.reader([text], skipinitialspace=True), [])
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no class name in it")
    if names == [text] and os.path.splitext(text)[1]:
        raise argparse.ArgumentTypeError(f"no such file: {text}")
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
            oddities: list[str] = []
            try:
                images.append(read_image(path, oddities))
                done.append(path)
            except UserError as error:
                if len(paths) == 1:
                    raise
                print(f"skipped: {error}", file=sys.stderr)
            if DEEP in oddities:
                print(f"{path} has {DEEP}", file=sys.stderr)
        guesses += predictor(images, top)
    if not done:
        raise UserError("none of the files is an image")
    return done, guesses


def _predictor(args: argparse.Namespace) -> Predictor:
    """Of a run, or of a checkpoint that options describe. Raises UserError as `Predictor`."""
    if not args.trainer:
        if args.config_file or args.dataset_config_file or args.opts:
            raise UserError("--config-file, --dataset-config-file and --opts go with --trainer")
        return Predictor(args.model, args.classes, args.backbone)
    from tuning.run import run_of_checkpoint

    if not args.classes:
        raise UserError("--trainer is for a checkpoint that doesn't say its classes: say --classes")
    words = ["--trainer", args.trainer, "--backbone", args.backbone]
    words += ["--config-file", args.config_file] if args.config_file else []
    words += ["--dataset-config-file", args.dataset_config_file] if args.dataset_config_file else []
    predictor = Predictor.__new__(Predictor)
    predictor.take(run_of_checkpoint(args.model, [*words, *args.opts], args.classes))
    return predictor


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
    for option in ("--trainer", "--config-file", "--dataset-config-file"):
        parser.add_argument(option, default="", help="as train.py's: of a checkpoint without a run")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument(
        "--out", type=output_file, metavar="FILE", help="write there, not to the terminal"
    )
    args = parser.parse_args(argv)
    paths = find_images(args.images)
    predictor = _predictor(args)
    paths, guesses = classify(predictor, paths, args.top)
    text = FORMATS[args.format](paths, guesses)
    if args.out:
        with atomic_write(args.out) as file:
            file.write(text + "\n")
    else:
        print(text)

"""A trained model as a folder that stands alone, to be used without its run or its data.

    python scripts/export.py RUN --output MODEL
    python scripts/export.py RUN --output MODEL --onnx --with-backbone
    python scripts/export.py RUN --output MODEL --features photos/ 'more/*.png'
    python scripts/export.py RUN --output MODEL --push NAME/REPOSITORY

The folder has the trained tensors and the class embeddings as safetensors, classes and settings, a
model card, and with --onnx the whole classifier as one ONNX graph, checked against PyTorch. Then

    from tuning.exported import ExportedModel
    model = ExportedModel.from_pretrained("MODEL")
    print(model(["photo.jpg"], top=3))
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl.utils import UserError, atomic_write, user_errors
from dassl.utils.cli import Parser

if TYPE_CHECKING:
    from tuning.run import Run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a run, or a checkpoint in it")
    add("--output", required=True, metavar="MODEL", help="the folder to write; new or empty")
    add("--onnx", action="store_true", help="also as ONNX: images → logits")
    add("--with-backbone", action="store_true", help="CLIP's tensors too, though it can be named")
    add("--backbone", default="", help="CLIP's name or file, if not the run's")
    add("--features", nargs="+", metavar="IMAGES", help="also features and logits of these images")
    add("--push", default="", metavar="NAME", help="upload to this repository of Hugging Face")
    add("--private", action="store_true", help="with --push: for your eyes only")
    return parser.parse_args(argv)


@user_errors()
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    # Here, as they import PyTorch, which --help has no need of.
    from tuning import onnx
    from tuning.exported import ExportedModel, save
    from tuning.run import open_run

    if args.private and not args.push:
        raise UserError("--private is for --push")
    run, folder = open_run(args.run, args.backbone), Path(args.output)
    if args.onnx:
        onnx.require_packages()
    save(run, folder, args.with_backbone)
    refused = ""
    if args.onnx:
        try:
            difference = onnx.export(run, folder / "model.onnx")
            print(f"model.onnx: onnxruntime's logits within {difference:.1e} of PyTorch's largest")
        except UserError as error:
            refused = str(error)
    with atomic_write(folder / "README.md") as file:
        file.write(model_card(run, args.onnx and not refused))
    if refused:
        raise UserError(f"{refused}; all else is in {folder}")
    if args.features:
        n = write_features(run, args.features, folder / "features.npz")
        print(f"features.npz: {n} images")
    model = ExportedModel(folder)  # what was written can be read
    print(f"wrote {folder}: {len(model.classes)} classes")
    if args.push:
        print(model.push_to_hub(args.push, args.private))
    return 0


def write_features(run: Run, sources: list[str], path: Path) -> int:
    """Write features of image files; return how many there are.

    The file has image (N,D) and text (C,D) or (N,C,D), L2-normalized, logits (N,C), fp32, and paths
    and classnames.

    Raises:
        UserError: there are no images, or one can't be read.
    """
    import numpy as np
    import torch

    from dassl.utils import read_image
    from tuning.method import unit
    from tuning.prediction import find_images

    paths = find_images(sources)
    at_once = run.cfg.DATALOADER.TEST.BATCH_SIZE
    images, texts, logits = [], [], []
    for start in range(0, len(paths), at_once):
        views = [run.preprocess(read_image(path)) for path in paths[start : start + at_once]]
        features = run.features(views)
        images.append(unit(features.image).float().cpu())
        texts.append(unit(features.text).float().cpu())
        logits.append(run.logits(views))
    each = texts[0].dim() == 3
    arrays = {
        "image": torch.cat(images).numpy(),
        "text": (torch.cat(texts) if each else texts[0]).numpy(),
        "logits": torch.cat(logits).numpy(),
        "paths": np.array(paths),
        "classnames": np.array(run.classnames),
    }
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **arrays)
    return len(paths)


def model_card(run: Run, with_onnx: bool) -> str:
    """What the model is and how it is used, in Markdown with Hugging Face's head."""
    from tuning import sees

    result, cfg = run.result, run.cfg
    classes = run.classnames
    names = ", ".join(classes[:20]) + (
        f" and {len(classes) - 20} more" if len(classes) > 20 else ""
    )
    seen = sees.meanings(result.get("sees") or ())
    lines = [
        "---",
        "pipeline_tag: image-classification",
        f"tags: [clip, prompt-tuning, {cfg.TRAINER.NAME.lower()}]",
        "---",
        f"# {cfg.TRAINER.NAME} on {cfg.DATASET.NAME or 'a data set'}",
        "",
        f"CLIP ({_backbone(cfg)}) tuned with {cfg.TRAINER.NAME} to {len(classes)} classes:",
        f"{names}.",
        "",
        *_measured(result),
        f"Beside labeled training images and their classes' names it saw: {seen}.",
        "",
        "```python",
        "from tuning.exported import ExportedModel",
        "",
        'model = ExportedModel.from_pretrained("THIS FOLDER")',
        'print(model(["photo.jpg"], top=3))',
        "```",
        "",
        "`model.safetensors` has what was trained and, where they don't depend on the image,",
        "`class_embeddings` (classes × width, L2-normalized): the scores of image-text matching",
        "are `exp(logit_scale) · image_feature · class_embeddingsᵀ`.",
    ]
    if with_onnx:
        size = tuple(cfg.INPUT.SIZE)
        lines += [
            "",
            f"`model.onnx`: `images` (batch, 3, {size[0]}, {size[1]}), normalized with mean",
            f"{list(cfg.INPUT.PIXEL_MEAN)} and deviation {list(cfg.INPUT.PIXEL_STD)} → `logits`.",
        ]
    return "\n".join(lines) + "\n"


def _backbone(cfg: Any) -> str:
    """The backbone's name; of a file its last part: a path is its machine's."""
    name = cfg.MODEL.BACKBONE.NAME
    return Path(name).name if Path(name).is_file() else name


def _measured(result: dict[str, Any]) -> list[str]:
    if "accuracy" not in result:
        return []
    number, split = result.get("num_test", "?"), result.get("split", "test")
    return [f"Accuracy on the {number} images of its {split} set: {result['accuracy']:.2f} %.", ""]

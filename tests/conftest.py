"""A tiny CLIP with random weights and a folder of tiny pictures: what most tests run on."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import heed_signals, set_random_seed
from tests.warm_python import warm_python
from tuning.options import parse_args, setup_cfg

# One thread, here and in what the tests start: sums are then the same in every process, and
# workers side by side don't fight over the cores.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Depths that fit the tiny CLIP's three layers, and nothing random in the views.
OPTIONS = {
    "INPUT.SIZE": "(32, 32)",
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.TRANSFORMS": "('center_crop', 'normalize')",
    "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
    "DATALOADER.TEST.BATCH_SIZE": 7,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASET.NAME": "ImageFolder",
    "DATASET.NUM_SHOTS": 2,
    "OPTIM.NAME": "sgd",
    "OPTIM.LR": 0.0035,
    "OPTIM.MAX_EPOCH": 2,
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-5,
    "TRAINER.COOP.N_CTX": 4,
    "TRAINER.COOP.PREC": "fp32",
    "TRAINER.COCOOP.PREC": "fp32",
    "TRAINER.MAPLE.PREC": "fp32",
    "TRAINER.MAPLE.PROMPT_DEPTH": 3,
    "TRAINER.VPT.PREC": "fp32",
    "TRAINER.VPT.PROMPT_DEPTH_VISION": 3,
    "TRAINER.CLIP_ADAPTER.PREC": "fp32",
    "TRAINER.PROMPTSRC.PREC": "fp32",
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 3,
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 2,
    "TRAINER.PROMPTSRC.GPA_MEAN": 1.5,
    "TRAINER.ZEROSHOT.PREC": "fp32",
    "TRAINER.CLIP_LORA.PREC": "fp32",
    "TRAINER.CLIP_LORA.DROPOUT_RATE": 0.0,
    "TRAINER.MMADAPTER.PREC": "fp32",
    "TRAINER.MMADAPTER.ADAPTER_START": 2,
    "TRAINER.MMADAPTER.ADAPTER_END": 3,
    "TRAINER.MMRL.PREC": "fp32",
    "TRAINER.MMRL.REP_LAYERS": "(2, 3)",
    "TRAINER.MMRLpp.PREC": "fp32",
    "TRAINER.MMRLpp.REP_LAYERS": "(2, 3)",
    "TRAINER.PRE.PREC": "fp32",
    "TRAINER.LASP.PREC": "fp32",
    "TRAINER.EPT.PREC": "fp32",
    "TRAINER.LAMP.PREC": "fp32",
    "TRAINER.IPT.PREC": "fp32",
    "TRAINER.INFOPROMPT.PREC": "fp32",
    "TRAINER.STABLEPT.PREC": "fp32",
    "TRAINER.ROBUSTPROMPT.PREC": "fp32",
    "TRAINER.TIP_ADAPTER.PREC": "fp32",
    "TRAINER.TaskRes.PREC": "fp32",
    "TRAINER.LPPP.PREC": "fp32",
    "TRAINER.ADAPTER.PREC": "fp32",
    "TRAINER.ADAPTER.PASSES": 2,
    "TRAINER.MP2.PREC": "fp32",
    "TRAINER.TCP.LAYER": 2,
    "TRAINER.PROMETAR.PREC": "fp32",
    "TRAINER.PROMETAR.PROMPT_DEPTH_VISION": 3,
    "TRAINER.PROMETAR.PROMPT_DEPTH_TEXT": 2,
    "TRAINER.UCP.PREC": "fp32",
    "TRAINER.RLPROMPT.PREC": "fp32",
    "TRAINER.RLPROMPT.HIDDEN": 32,
    "TRAINER.RLPROMPT.PROMPTS": 4,
    "TRAINER.PROMPTKD.PREC": "fp32",
    "TRAINER.PROMPTKD.PROMPT_DEPTH_VISION": 3,
    "TRAINER.PROMPTKD.TEACHER_DIM": 32,
    "TRAINER.CoPrompt.PREC": "fp32",
    "TRAINER.CoPrompt.PROMPT_DEPTH": 3,
    "TRAINER.CoPrompt.SENTENCES": str(Path(__file__).parent / "sentences.json"),
    "TRAINER.SKIP.PREC": "fp32",
    "TRAINER.SKIP.START_LAYER": 1,
}


def arguments(trainer: str, root, backbone, output, *extra: str, **options) -> list[str]:
    """A command line for train.py. Options' dots are written as double underscores."""
    options = {**OPTIONS, **{k.replace("__", "."): v for k, v in options.items()}}
    pairs = [str(word) for pair in options.items() for word in pair]
    return [
        *("--trainer", trainer, "--root", str(root), "--backbone", str(backbone)),
        *("--output-dir", str(output), "--seed", "1", *extra, *pairs),
    ]


CLASSES = ["ant", "brown_bear", "cat", "desert fox", "eel"]


def tiny_clip(seed: int = 0, **sizes) -> CLIP:
    """A random CLIP whose images are 32 × 32 and whose towers have three layers, in fp32."""
    torch.manual_seed(seed)
    defaults = {
        "embed_dim": 32,
        "image_resolution": 32,
        "vision_layers": 3,
        "vision_width": 64,
        "vision_patch_size": 8,
        "context_length": 77,
        "vocab_size": 49408,
        "transformer_width": 64,
        "transformer_heads": 1,
        "transformer_layers": 3,
    }
    return CLIP(**{**defaults, **sizes}).eval()


@torch.no_grad()
def leave_zeros(method):
    """Behind what starts at zero there is no gradient in the first step."""
    for parameter in method.trained().values():
        parameter += 0.02 * torch.randn_like(parameter)


@pytest.fixture(scope="session")
def python(tmp_path_factory) -> Iterator[str]:
    """An executable to start programs of this code with: Python, PyTorch loaded already."""
    with warm_python(tmp_path_factory.mktemp("python")) as executable:
        yield executable


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """A checkpoint file of `tiny_clip`, in fp16 as the released ones."""
    path = tmp_path_factory.mktemp("backbone") / "tiny.pt"
    torch.save({k: v.half() for k, v in tiny_clip().state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def picture_root(tmp_path_factory) -> Path:
    """A folder with one folder of 10 noisy pictures for each of `CLASSES`, each of its own hue."""
    root = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for c, name in enumerate(CLASSES):
        folder = root / name
        folder.mkdir()
        for i in range(10):
            pixels = noise.integers(0, 120, (40, 40, 3))
            pixels[..., c % 3] += 40 + 20 * c
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def teacher_run(picture_root, backbone, tmp_path_factory) -> Path:
    """The folder of a small run to learn from."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    cfg = setup_cfg(parse_args(arguments("CoOp", picture_root, backbone, folder)))
    import datasets  # noqa: F401

    set_random_seed(cfg.SEED)
    build_trainer(cfg).train()
    return folder


@pytest.fixture
def command(picture_root, backbone, tmp_path, request):
    """command(trainer, …) → the arguments of a run in tmp_path/run.

    One that learns from a teacher has `teacher_run`, unless it names another.
    """

    def build(trainer: str, *extra: str, output=None, **options) -> list[str]:
        output = output or tmp_path / "run"
        registered = TRAINER_REGISTRY.get(trainer) if trainer in TRAINER_REGISTRY else None
        key = getattr(getattr(registered, "method_class", None), "teacher_key", "")
        key = key.replace(".", "__")
        if key and key not in options and not extra:
            options[key] = request.getfixturevalue("teacher_run")
        return arguments(trainer, picture_root, backbone, output, *extra, **options)

    return build


@pytest.fixture
def make_trainer(command):
    """make_trainer(trainer, …) → the built trainer."""

    def build(trainer: str, **options):
        cfg = setup_cfg(parse_args(command(trainer, **options)))
        import datasets  # noqa: F401

        set_random_seed(cfg.SEED)
        return build_trainer(cfg)

    return build


# Of the trained runs.
SMALL = (
    *("INPUT.SIZE", "(32, 32)", "OPTIM.MAX_EPOCH", "2", "DATASET.NUM_SHOTS", "2"),
    *("TRAINER.COOP.N_CTX", "3", "DATALOADER.TEST.BATCH_SIZE", "4"),
)


@pytest.fixture(scope="session")
def run_folders(picture_root, backbone, tmp_path_factory) -> dict[str, Path]:
    """Run folders: DePT_CoOp and CoOp trained on the base classes, the oracle on all of them."""
    folders = {}
    for name, trainer, classes in (
        ("DePT_CoOp", "DePT_CoOp", "base"),
        ("CoOp", "CoOp", "base"),
        ("oracle", "CoOp", "all"),
    ):
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        arguments = [
            *("--trainer", trainer, "--root", str(picture_root), "--backbone", str(backbone)),
            *("--output-dir", str(folders[name]), "--seed", "1"),
            *("--dataset-config-file", "configs/datasets/image_folder.yaml"),
            *("--config-file", f"configs/trainers/{trainer}/mini.yaml", *SMALL),
            *("DATASET.SUBSAMPLE_CLASSES", classes),
        ]
        import datasets  # noqa: F401

        cfg = setup_cfg(parse_args(arguments))
        set_random_seed(cfg.SEED)
        build_trainer(cfg).train()
    return folders


@pytest.fixture
def further(tmp_path):
    """Config files of two further data sets, of two and of three classes."""
    files = []
    for number, count in enumerate((2, 3)):
        root = tmp_path / f"set{number}"
        for c in range(count):
            (root / f"thing {number}{c}").mkdir(parents=True)
            for i in range(10):
                pixels = np.random.default_rng([number, c, i]).integers(0, 256, (40, 40, 3))
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / f"thing {number}{c}" / f"{i}.png")
        files.append(tmp_path / f"set{number}.yaml")
        files[-1].write_text(f"DATASET:\n  NAME: ImageFolder\n  ROOT: {root}\n")
    return {"DATASET__FURTHER": str(tuple(map(str, files)))}


@pytest.fixture
def heeded_signals():
    """As in train.py itself; afterwards they are pytest's again."""
    before = [(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    heed_signals()
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def full_disk():
    """Inside `with full_disk():` no file grows beyond some bytes: what a full disk does."""

    @contextmanager
    def limit(size: int = 2000):
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    return limit

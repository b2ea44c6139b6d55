"""A tiny CLIP with random weights and a folder of tiny pictures: what most tests run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip.model import CLIP

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

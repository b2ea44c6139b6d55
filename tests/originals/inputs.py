"""The inputs that the original code and ours were given: a random CLIP, pictures, starting values.

Everything comes from numpy's frozen generator and is rounded to what fp16 can hold, so it is the
same on every machine, in every version and in every precision. Needs numpy, Pillow and torch alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from PIL import Image

# Widths of the features, of the image tower and of the text tower: swapped ones don't fit.
D, D_V, D_T = 64, 192, 128
LAYERS, PATCH, SIZE, TOKENS, VOCABULARY = 3, 8, 32, 77, 49408
STEPS = 6
# Class folder and display name; the first three are base classes. Names of several words, of
# words of several tokens, with underscores, and ending in what isn't a letter.
NAMES = {
    "c0": "ant",
    "c1": "brown_bear",
    "c2": "Coton de Tulear",
    "c3": "desert fox (Vulpes zerda)",
    "c4": "Komodo_dragon",
}
BASE, NEW = list(NAMES)[:3], list(NAMES)[3:]
TEMPLATE = "a photo of a {}, a type of pet."  # the originals' for OxfordPets
TRAIN, TEST = 4, 3  # pictures of a class


def draw(name: str, shape: tuple[int, ...], scale: float | None = None) -> torch.Tensor:
    """Values that depend on the name alone: normal, 1/√(last size) wide; around 1 for a scale."""
    noise = np.random.RandomState(crc32(name.encode())).standard_normal(shape)
    values = noise * (shape[-1] ** -0.5 if scale is None else scale)
    return torch.from_numpy(values + name.endswith("scale")).to(torch.float16).to(torch.float32)


def clip_state() -> dict[str, torch.Tensor]:
    """The state dict of a random CLIP by OpenAI's names, in fp16."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (TOKENS, D_T),
        "text_projection": (D_T, D),
        "token_embedding.weight": (VOCABULARY, D_T),
        "ln_final.weight": (D_T,),
        "ln_final.bias": (D_T,),
        "visual.class_embedding": (D_V,),
        "visual.positional_embedding": ((SIZE // PATCH) ** 2 + 1, D_V),
        "visual.proj": (D_V, D),
        "visual.conv1.weight": (D_V, 3, PATCH, PATCH),
    }
    for norm in ("visual.ln_pre", "visual.ln_post"):
        shapes |= {f"{norm}.weight": (D_V,), f"{norm}.bias": (D_V,)}
    for tower, width in (("visual.transformer", D_V), ("transformer", D_T)):
        for i in range(LAYERS):
            block = f"{tower}.resblocks.{i}"
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
                f"{block}.attn.out_proj.weight": (width, width),
                f"{block}.attn.out_proj.bias": (width,),
                f"{block}.mlp.c_fc.weight": (4 * width, width),
                f"{block}.mlp.c_fc.bias": (4 * width,),
                f"{block}.mlp.c_proj.weight": (width, 4 * width),
                f"{block}.mlp.c_proj.bias": (width,),
            }
            for norm in (f"{block}.ln_1", f"{block}.ln_2"):
                shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    state = {name: draw(name, shape) for name, shape in shapes.items()}
    for name in state:
        if "ln_" in name and name.endswith("weight"):
            state[name] += 1
    state["visual.conv1.weight"] *= 0.5
    state["logit_scale"] = torch.tensor(100.0).log()
    return {name: value.to(torch.float16) for name, value in state.items()}


def write_backbone(path: Path) -> None:
    """Write the CLIP as a checkpoint file of OpenAI's layout."""
    torch.save(clip_state(), path)


def write_pictures(root: Path, names: dict[str, str] | None = None) -> None:
    """train/ and test/ with a folder for each class, the display names, the template."""
    names = names or NAMES
    for part, count in (("train", TRAIN), ("test", TEST)):
        for folder in names:
            (root / part / folder).mkdir(parents=True)
            for i in range(count):
                noise = np.random.RandomState(crc32(f"{part}/{folder}/{i}".encode()))
                coarse = np.random.RandomState(crc32(folder.encode())).randint(0, 160, (4, 4, 3))
                pixels = coarse.repeat(8, axis=0).repeat(8, axis=1)
                pixels = pixels + noise.randint(0, 96, (SIZE, SIZE, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / folder / f"{i}.png")
    lines = [f"{folder}\t{name}\n" for folder, name in names.items()]
    (root / "classnames.txt").write_text("".join(lines), encoding="utf-8")
    (root / "template.txt").write_text(f"{TEMPLATE}\n", encoding="utf-8")


def teacher_state() -> dict[str, torch.Tensor]:
    """The prompts of PromptKD's teacher, by the original's names."""
    shapes = {"prompt_learner.ctx": (4, D_T), "image_encoder.VPT": (4, D_V)}
    for tower, width in (("image", D_V), ("text", D_T)):
        for i in range(1, LAYERS):
            shapes[f"{tower}_encoder.transformer.resblocks.{i}.VPT_shallow"] = (4, width)
    return {name: draw(f"teacher.{name}", shape) for name, shape in shapes.items()}


def write_sentences(path: Path) -> None:
    """Write one sentence for each class."""
    names = [name.replace("_", " ") for name in NAMES.values()]
    sentences = {n: [f"A {n} is number {i} of the animals here."] for i, n in enumerate(names)}
    path.write_text(json.dumps(sentences), encoding="utf-8")


def pin_draws(set_attribute: Callable[[object, str, object], object]) -> None:
    """Let PyTorch draw what these functions' arguments and count alone say.

    set_attribute: such as `setattr`, or a test's that takes it back.
    """
    count = [0]

    def generator(*key: object) -> np.random.RandomState:
        count[0] += 1
        return np.random.RandomState(crc32(f"{key} {count[0]}".encode()))

    def permutation(n: int, **_: object) -> torch.Tensor:
        return torch.from_numpy(generator("permutation", n).permutation(n))

    def integers(high: int, size: tuple[int, ...], **_: object) -> torch.Tensor:
        return torch.from_numpy(generator("integers", high, size).randint(0, high, size))

    def beta(distribution: torch.distributions.Beta, size: tuple[int, ...] = ()) -> torch.Tensor:
        a, b = float(distribution.concentration1), float(distribution.concentration0)
        return torch.from_numpy(generator("beta", a, b, size).beta(a, b, size)).float()

    set_attribute(torch, "randperm", permutation)
    set_attribute(torch, "randint", integers)
    set_attribute(torch.distributions.Beta, "sample", beta)

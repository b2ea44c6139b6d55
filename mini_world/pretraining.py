"""Pre-train the tiny CLIP on captions of the drawn world (see docs/mini_world.md).

    OMP_NUM_THREADS=1 python scripts/pretrain_tiny_clip.py --out mini_world/tiny_clip.pt

Contrastive learning as in CLIP (Radford et al. 2021), on scenes of `mini_world/drawing.py`. The
captions of one batch all name the same attributes ("red thing", "striped star on sand"), so which
caption is true of which image is known exactly: every image has one true caption, and every caption
is true of one image or several.

Every step draws its randomness from (seed, step) alone: a killed run goes on where its last
checkpoint was, with the same result. The file holds fp16 tensors under OpenAI's names; of the
token embedding only the rows of the words used here. Beside it lies a report (.json) of what was
measured.
"""

import argparse
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip import tokenize
from clip.model import CLIP
from clip.open_clip_parts import imagenet_templates, selected_imagenet_templates
from dassl.utils import (
    json_text,
    load_checkpoint,
    user_errors,
    write_json,
    write_tensors,
)
from mini_world.drawing import (
    COLOURS,
    GROUNDS,
    SHAPES,
    STYLES,
    SWATCH,
    TEXTURES,
    draw,
    phrase,
    random_scenes,
)

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
SIDE, PATCH, WIDTH, LAYERS, EMBED, CONTEXT, VOCABULARY = 48, 8, 128, 4, 128, 77, 49408

NAMES = {
    "shape": [*SHAPES, SWATCH],
    "colour": list(COLOURS),
    "texture": list(TEXTURES),
    "ground": list(GROUNDS),
    "style": list(STYLES),
}
# Which attributes the captions of a batch name, and how often. Shape is the slowest to learn.
MENTIONS = {
    ("shape",): 0.28,
    ("colour",): 0.02,
    ("texture",): 0.05,
    ("shape", "colour"): 0.22,
    ("shape", "texture"): 0.11,
    ("colour", "texture"): 0.05,
    ("shape", "ground"): 0.07,
    ("shape", "colour", "texture"): 0.12,
    ("shape", "colour", "texture", "ground"): 0.08,
}
STYLE_SHARE = 0.15  # of the batches whose captions name the style too
# A learned context is up to 16 tokens that are no words one knows. From this step on, half of the
# captions begin with as many random words, so that the text tower has seen names at any place.
LONG_FROM, LONGEST = 5200, 16
STYLE_RATES = {"clear": 0.6, "dark": 0.1, "bright": 0.1, "blurry": 0.1, "grainy": 0.1}

PLAIN_TEMPLATES = ["a photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a {}.", "{}"]
STYLED_TEMPLATES = ["a {style} photo of a {}.", "a {style} photo of the {}.", "a {style} {}."]
# The prompts of prompt tuning's usual data sets: their words become known to the text tower.
DOWNSTREAM_TEMPLATES = [
    "a photo of a {}, a type of pet.",
    "a photo of a {}, a type of flower.",
    "a photo of a {}, a type of aircraft.",
    "a photo of a {}, a type of texture.",
    "a photo of {}, a type of food.",
    "a centered satellite photo of {}.",
    "a photo of a person doing {}.",
    "{} texture.",
    "a photo of one {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "this is a photo of a {}.",
    "there is a {} in the picture.",
]


def neutral_templates() -> list[str]:
    """Templates that state no attribute: OpenAI's and the usual data sets' own."""
    known = [*imagenet_templates(), *selected_imagenet_templates(), *DOWNSTREAM_TEMPLATES]
    claims = {word for names in NAMES.values() for word in names}
    return sorted({t for t in known if not claims & set(t.replace(".", " ").split())})


@dataclass
class Pool:
    """Drawn images (N,3,S,S) uint8 and what is on them: attribute name → (N,) indices."""

    images: torch.Tensor
    attributes: dict[str, np.ndarray]


def held_out(seed: int, share: float = 0.08) -> np.ndarray:
    """(shapes, colours, textures) bool: combinations that pre-training never shows."""
    rng = np.random.default_rng((seed, 1))
    return rng.random((len(SHAPES) + 1, len(COLOURS), len(TEXTURES))) < share


def draw_pool(
    seed: int, size: int, out: np.ndarray, unseen: bool = False, part: int = 2, side: int = SIDE
) -> Pool:
    """Draw `size` images in every style, of combinations outside `out` (or only inside it)."""
    images, parts = [], []
    chunk = 512
    rates = [STYLE_RATES[name] for name in STYLES]
    for start in range(0, size, chunk):
        rng = np.random.default_rng((seed, part, start))
        n = min(chunk, size - start)
        scene = random_scenes(rng, n * (40 if unseen else 2))
        keep = out[scene.shape, scene.colour, scene.texture] == unseen
        rows = np.flatnonzero(keep)[:n]
        scene = scene.take(rows)
        style = rng.choice(len(STYLES), n, p=rates)
        picture = np.empty((n, side, side, 3), np.uint8)
        for index, look in enumerate(STYLES.values()):
            which = np.flatnonzero(style == index)
            if len(which):
                picture[which] = draw(scene.take(which), side, look, rng)
        images.append(torch.from_numpy(picture).permute(0, 3, 1, 2).contiguous())
        ground = np.where(scene.shape == len(SHAPES), -1, scene.ground)
        parts.append(
            {
                "shape": scene.shape,
                "colour": scene.colour,
                "texture": scene.texture,
                "ground": ground,
                "style": style,
            }
        )
    return Pool(torch.cat(images), {k: np.concatenate([p[k] for p in parts]) for k in NAMES})


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B,3,S,S) → float with CLIP's mean and deviation."""
    return (images.float() / 255 - MEAN) / STD


def augment(images: torch.Tensor, rng: np.random.Generator, reach: int = 2) -> torch.Tensor:
    """Shift by up to `reach` pixels, mirror, and change the exposure a little. uint8 → float."""
    b, side = len(images), images.shape[-1]
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    line = np.arange(side)
    rows = torch.from_numpy(rng.integers(0, 2 * reach + 1, (b, 1)) + line)
    mirrored = np.where(rng.random((b, 1)) < 0.5, line, line[::-1])
    columns = torch.from_numpy(rng.integers(0, 2 * reach + 1, (b, 1)) + mirrored)
    which = torch.arange(b).view(b, 1, 1)
    views = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].float()
    exposure = torch.from_numpy(rng.uniform(0.85, 1.15, (b, 1, 1, 1)).astype(np.float32))
    return ((views.permute(0, 3, 1, 2) * exposure / 255).clamp(0, 1) - MEAN) / STD


def name_of(mentioned: tuple[str, ...], values: tuple[int, ...]) -> str:
    """The class name that states these attributes; an unseen ground (−1) is left out."""
    stated = dict(zip(mentioned, values, strict=True))
    words = {k: NAMES[k][v] for k, v in stated.items() if k != "style" and v >= 0}
    return phrase(**words)


class Vocabulary:
    """The token ids used here, numbered densely and in order (EOT stays the largest)."""

    def __init__(self, texts: list[str]) -> None:
        self.ids = tokenize(texts).unique()  # sorted; 0 is the padding

    def encode(self, texts: list[str]) -> torch.Tensor:
        """texts → (len(texts), L) dense ids, cut after the longest text.

        Raises ValueError for a text with a token that isn't one of these.
        """
        tokens = tokenize(texts)
        tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
        dense = torch.searchsorted(self.ids, tokens.contiguous()).clamp_(max=len(self.ids) - 1)
        if not torch.equal(self.ids[dense], tokens):
            raise ValueError(f"words outside the vocabulary in {texts}")
        return dense


def all_texts() -> list[str]:
    """Texts that together hold every word a caption can hold."""
    words = [word for names in NAMES.values() for word in names]
    templates = [*PLAIN_TEMPLATES, *neutral_templates()]
    styled = [t.format("thing", style=s) for t in STYLED_TEMPLATES for s in STYLES]
    return [t.format("thing on X") for t in templates] + [f"a {w}." for w in words] + styled


class Captions:
    """Draws, for a batch, which attributes are named, and one caption for each true statement."""

    def __init__(self) -> None:
        self.neutral = neutral_templates()
        words = {word.strip(".,") for t in self.neutral for word in t.split() if "{" not in word}
        self.fillers = sorted(word for word in words if word.isalpha())

    def draw(
        self, pool: Pool, rows: np.ndarray, rng: np.random.Generator, long: bool = False
    ) -> tuple[list[str], np.ndarray]:
        """→ captions (K strings) and, per image, the number of its caption (B,).

        `long`: half of the captions have random words in front.
        """
        kinds, rates = list(MENTIONS), np.array(list(MENTIONS.values()))
        mentioned = kinds[rng.choice(len(kinds), p=rates / rates.sum())]
        if rng.random() < STYLE_SHARE:
            mentioned = (*mentioned, "style")
        stated = np.stack([pool.attributes[k][rows] for k in mentioned], 1)
        unique, which = np.unique(stated, axis=0, return_inverse=True)
        texts = [self._one(mentioned, tuple(v), rng, long) for v in unique]
        return texts, which.reshape(-1)

    def _one(
        self,
        mentioned: tuple[str, ...],
        values: tuple[int, ...],
        rng: np.random.Generator,
        long: bool,
    ) -> str:
        name = name_of(mentioned, values)
        if mentioned[-1] == "style":
            template = STYLED_TEMPLATES[rng.integers(len(STYLED_TEMPLATES))]
            return template.format(name, style=NAMES["style"][values[-1]])
        if long and rng.random() < 0.5:
            words = rng.choice(self.fillers, rng.integers(1, LONGEST + 1))
            return f"{' '.join(words)} {name}."
        templates = PLAIN_TEMPLATES if rng.random() < 0.5 else self.neutral
        return templates[rng.integers(len(templates))].format(name)


def contrast(image: torch.Tensor, text: torch.Tensor, which: torch.Tensor, scale: torch.Tensor):
    """CLIP's symmetric loss with image (B,D), text (K,D) and each image's caption (B,).

    image → text: cross entropy. text → image: −log p of the true images, averaged per caption.
    """
    logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    to_text = F.cross_entropy(logits, which)
    true = F.one_hot(which, text.shape[0]).float()  # (B,K)
    to_image = -(logits.log_softmax(0) * true / true.sum(0)).sum(0).mean()
    return (to_text + to_image) / 2


def waves(grid: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, (grid², width): neighbours start out alike.

    A small ViT learns what is next to what much faster from here than from random positions.
    """
    frequency = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    phase = torch.arange(grid)[:, None] * frequency  # (grid, width/4)
    line = torch.cat([phase.sin(), phase.cos()], 1)  # (grid, width/2)
    rows = line[:, None].expand(grid, grid, -1)
    return torch.cat([rows, rows.transpose(0, 1)], 2).reshape(grid * grid, width)


def new_model(vocabulary: int) -> CLIP:
    model = CLIP(
        embed_dim=EMBED,
        image_resolution=SIDE,
        vision_layers=LAYERS,
        vision_width=WIDTH,
        vision_patch_size=PATCH,
        context_length=CONTEXT,
        vocab_size=vocabulary,
        transformer_width=WIDTH,
        transformer_heads=WIDTH // 64,
        transformer_layers=LAYERS,
    )
    with torch.no_grad():
        model.visual.positional_embedding[1:] = 0.3 * waves(SIDE // PATCH, WIDTH)
    return model


def optimizer_for(model: CLIP, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-6)


def decay_start(steps: int) -> int:
    """The step at which the learning rate begins to fall."""
    return steps * 7 // 10


def rate(step: int, args: argparse.Namespace) -> float:
    """Learning rate: a linear warm-up, then level, then linearly to nought."""
    up = (step + 1) / max(1, args.warmup)
    down = (args.steps - step) / max(1, args.steps - decay_start(args.steps))
    return args.lr * min(1.0, up, down)


@torch.no_grad()
def encode_names(model: CLIP, words: Vocabulary, names: list[str]) -> torch.Tensor:
    prompts = [f"a photo of a {name}." for name in names]
    features = [
        model.encode_text(words.encode(prompts[i : i + 512])) for i in range(0, len(prompts), 512)
    ]
    return F.normalize(torch.cat(features), dim=-1)


# What the classes of a zero-shot test name; the combination is the hardest.
TESTS = {
    "shape": ("shape",),
    "colour": ("colour",),
    "texture": ("texture",),
    "ground": ("ground",),
    "combination": ("shape", "colour", "texture"),
}


@torch.no_grad()
def accuracies(model: CLIP, words: Vocabulary, *pools: Pool) -> list[dict[str, float]]:
    """Zero-shot accuracies of each pool in percent, by the name of the test."""
    features = [
        F.normalize(torch.cat([model.encode_image(normalise(b)) for b in p.images.split(256)]))
        for p in pools
    ]
    results: list[dict[str, float]] = [{} for _ in pools]
    for test, mentioned in TESTS.items():
        sizes = [len(NAMES[k]) for k in mentioned]
        texts = encode_names(model, words, [name_of(mentioned, v) for v in np.ndindex(*sizes)])
        for result, pool, feature in zip(results, pools, features, strict=True):
            seen = np.flatnonzero(pool.attributes[mentioned[0]] >= 0)  # a swatch shows no ground
            label = np.ravel_multi_index([pool.attributes[k][seen] for k in mentioned], sizes)
            guess = (feature[torch.from_numpy(seen)] @ texts.T).argmax(1).numpy()
            result[test] = round(100 * float((guess == label).mean()), 2)
    return results


def export(model: CLIP, words: Vocabulary) -> dict[str, torch.Tensor]:
    """fp16 state dict with OpenAI's names; the token embedding is sparse (VOCABULARY × WIDTH)."""
    state = {k: v.detach().half().clone() for k, v in model.state_dict().items()}
    rows = state["token_embedding.weight"]
    shape = (VOCABULARY, rows.shape[1])
    sparse = torch.sparse_coo_tensor(words.ids.long()[None], rows, shape, check_invariants=True)
    state["token_embedding.weight"] = sparse.coalesce()
    return state


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the weights file to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pool", type=int, default=32768, help="images drawn beforehand")
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--eval-size", type=int, default=2048)
    parser.add_argument("--stop-at", type=int, default=None, help="stop early, to resume later")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    words = Vocabulary(all_texts())
    model = new_model(len(words.ids))
    optimizer = optimizer_for(model, args)
    resume = args.out.with_suffix(".resume")
    settings = {
        k: v for k, v in vars(args).items() if k not in ("out", "steps", "save_every", "stop_at")
    }
    step, seconds = 0, 0.0
    if resume.is_file():
        saved = load_checkpoint(resume)
        # Before the rate falls, a run of more or fewer steps would have come to the same point.
        level = saved["step"] <= decay_start(min(saved["steps"], args.steps))
        if saved["settings"] == settings and (level or saved["steps"] == args.steps):
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            step, seconds = saved["step"], saved["seconds"]
            print(f"resuming at step {step}", flush=True)

    out = held_out(args.seed)
    begun = time.monotonic()
    pool = draw_pool(args.seed, args.pool, out)
    print(f"{args.pool} images drawn in {time.monotonic() - begun:.0f} s", flush=True)
    trial = draw_pool(args.seed, min(512, args.eval_size), out, part=3)
    captions = Captions()
    begun = time.monotonic() - seconds
    mean_loss, first, first_time = 0.0, step, time.monotonic()
    while step < args.steps and step != args.stop_at:
        rng = np.random.default_rng((args.seed, 9, step))
        rows = rng.choice(args.pool, args.batch, replace=False)
        texts, which = captions.draw(pool, rows, rng, long=step >= LONG_FROM)
        images = augment(pool.images[torch.from_numpy(rows)], rng)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args)
        half = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")
        with half, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is slower for short sequences
            image, text = model.encode_image(images), model.encode_text(words.encode(texts))
        loss = contrast(image, text, torch.from_numpy(which), model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        step += 1
        mean_loss += (loss.item() - mean_loss) / min(50, step - first)
        if step % 50 == 0:
            pace = (time.monotonic() - first_time) / (step - first)
            print(
                f"step {step}/{args.steps} loss {mean_loss:.3f} "
                f"scale {model.logit_scale.exp().item():.0f} {pace:.3f} s/step "
                f"eta {pace * (args.steps - step) / 60:.0f} min",
                flush=True,
            )
        if step % args.save_every == 0 or step == args.stop_at:
            seconds = time.monotonic() - begun
            saved = {
                "settings": settings,
                "model": model.state_dict(),
                "step": step,
                "steps": args.steps,
                "optimizer": optimizer.state_dict(),
                "seconds": seconds,
            }
            write_tensors(saved, resume)
        if step % 1000 == 0:
            print(f"step {step} {accuracies(model.eval(), words, trial)[0]}", flush=True)
            model.train()
    if step < args.steps:
        return
    finish(args, model.eval(), words, out, time.monotonic() - begun)
    resume.unlink(missing_ok=True)


def finish(args, model: CLIP, words: Vocabulary, out: np.ndarray, seconds: float) -> None:
    """Write the weights and the report; what is measured is the rounded file."""
    state = export(model, words)
    rounded = {k: v.float() for k, v in state.items() if k != "token_embedding.weight"}
    rounded["token_embedding.weight"] = state["token_embedding.weight"].values().float()
    model.load_state_dict(rounded)
    seen, unseen = accuracies(
        model,
        words,
        draw_pool(args.seed, args.eval_size, out, part=4),
        draw_pool(args.seed, args.eval_size, out, unseen=True, part=5),
    )
    report = {
        "command": " ".join(["python", "scripts/pretrain_tiny_clip.py", *sys.argv[1:]]),
        "seconds": round(seconds),
        "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary_rows": len(words.ids),
        "held_out_share": round(float(out.mean()), 4),
        "zero_shot_seen_combinations": seen,
        "zero_shot_held_out_combinations": unseen,
    }
    write_tensors(state, args.out)
    write_json(report, args.out.with_suffix(".json"))
    print(json_text(report, indent=2))


@user_errors()
def main() -> None:
    """Read the command line and train."""
    train(parse())

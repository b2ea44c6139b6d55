"""Pre-training of the tiny CLIP on captions of the drawn world (see docs/mini_world.md).

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

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip.model import CLIP
from dassl.utils import json_text, load_checkpoint, write_json, write_tensors

from .captions import (
    LONG_FROM,
    NAMES,
    SIDE,
    Captions,
    Pool,
    Vocabulary,
    all_texts,
    draw_pool,
    held_out,
    name_of,
)

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
PATCH, WIDTH, LAYERS, EMBED, CONTEXT, VOCABULARY = 8, 128, 4, 128, 77, 49408


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B,3,I,I) → float with CLIP's mean and deviation."""
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


def contrast(image: torch.Tensor, text: torch.Tensor, which: torch.Tensor, scale: torch.Tensor):
    """CLIP's symmetric loss with image (B,D), text (n,D) and each image's caption (B,).

    image → text: cross entropy. text → image: −log p of the true images, averaged per caption.
    """
    logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    to_text = F.cross_entropy(logits, which)
    true = F.one_hot(which, text.shape[0]).float()  # (B,n)
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
    """The tiny CLIP untrained, patch positions starting from `waves`."""
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
    """Normalized text features (n,D) of "a photo of a {name}." for n names."""
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


class Training:
    """The model, its optimizer, and how far they are. `args`: pretraining_command.py's."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.words = Vocabulary(all_texts())
        self.model = new_model(len(self.words.ids))
        self.optimizer = optimizer_for(self.model, args)
        self.resume = args.out.with_suffix(".resume")
        others = ("out", "steps", "save_every", "stop_at")
        self.settings = {k: v for k, v in vars(args).items() if k not in others}
        self.step, self.seconds = 0, 0.0

    def go_on(self) -> None:
        """Take the state of an interrupted run with these settings, if there is one."""
        if not self.resume.is_file():
            return
        saved = load_checkpoint(self.resume)
        # Before the rate falls, a run of more or fewer steps would have come to the same point.
        level = saved["step"] <= decay_start(min(saved["steps"], self.args.steps))
        if saved["settings"] == self.settings and (level or saved["steps"] == self.args.steps):
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.seconds = saved["step"], saved["seconds"]
            print(f"resuming at step {self.step}", flush=True)

    def save(self) -> None:
        """Write what `go_on` takes."""
        saved = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "step": self.step,
            "steps": self.args.steps,
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
        }
        write_tensors(saved, self.resume)

    def take_step(self, pool: Pool, captions: Captions) -> float:
        """One step; returns its loss."""
        args, model = self.args, self.model
        rng = np.random.default_rng((args.seed, 9, self.step))
        rows = rng.choice(args.pool, args.batch, replace=False)
        texts, which = captions.draw(pool, rows, rng, long=self.step >= LONG_FROM)
        images = augment(pool.images[torch.from_numpy(rows)], rng)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, args)
        half = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")
        with half, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is slower for short sequences
            image = model.encode_image(images)
            text = model.encode_text(self.words.encode(texts))
        loss = contrast(image, text, torch.from_numpy(which), model.logit_scale.exp())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        self.step += 1
        return loss.item()


def train(args: argparse.Namespace) -> None:
    """Pre-train, from where an interrupted run was, and write the weights and the report."""
    run = Training(args)
    run.go_on()
    out = held_out(args.seed)
    begun = time.monotonic()
    pool = draw_pool(args.seed, args.pool, out)
    print(f"{args.pool} images drawn in {time.monotonic() - begun:.0f} s", flush=True)
    trial = draw_pool(args.seed, min(512, args.eval_size), out, part=3)
    captions = Captions()
    begun = time.monotonic() - run.seconds
    mean_loss, first, first_time = 0.0, run.step, time.monotonic()
    while run.step < args.steps and run.step != args.stop_at:
        loss = run.take_step(pool, captions)
        mean_loss += (loss - mean_loss) / min(50, run.step - first)
        if run.step % 50 == 0:
            pace = (time.monotonic() - first_time) / (run.step - first)
            print(
                f"step {run.step}/{args.steps} loss {mean_loss:.3f} "
                f"scale {run.model.logit_scale.exp().item():.0f} {pace:.3f} s/step "
                f"eta {pace * (args.steps - run.step) / 60:.0f} min",
                flush=True,
            )
        if run.step % args.save_every == 0 or run.step == args.stop_at:
            run.seconds = time.monotonic() - begun
            run.save()
        if run.step % 1000 == 0:
            print(
                f"step {run.step} {accuracies(run.model.eval(), run.words, trial)[0]}", flush=True
            )
            run.model.train()
    if run.step < args.steps:
        return
    finish(args, run.model.eval(), run.words, out, time.monotonic() - begun)
    run.resume.unlink(missing_ok=True)


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

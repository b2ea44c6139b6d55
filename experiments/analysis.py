"""What can be seen in trained models: scripts/analyze.py's commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dassl.utils import UserError, atomic_write
from dassl.utils.cli import write_csv_rows
from experiments.results.analyses import (
    CHANNELS,
    EMBEDDING,
    embedding_map,
    ratio,
    ratio_density,
    sorted_channels,
)
from experiments.results.of_classes import draw_matrix
from experiments.results.pictures import plt, save


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a table, whole or not at all."""
    with atomic_write(path) as file:
        write_csv_rows(file, [head, *rows])


def save_both(figure: plt.Figure, stem: Path) -> None:
    """Write a figure as PNG and PDF."""
    save(figure, f"{stem}.png", f"{stem}.pdf")
    print(f"written: {stem}.png, {stem}.pdf")


def importance(args: argparse.Namespace) -> None:
    """Channel importance of base and new classes for each run, as in the paper's Figure 2.

    A run trained on all classes is the oracle: it has seen the new ones.
    """
    from experiments.features import channel_importance, load_run

    names, base, new = [], [], []
    for run in args.runs:
        for classes, values in (("base", base), ("new", new)):
            analyzed = load_run(run, args.root, classes, args.backbone)
            values.append(channel_importance(analyzed, args.window))
        names.append(_run_name(run, names))
    ratios = [ratio(b, n) for b, n in zip(base, new, strict=True)]
    out = Path(args.out)
    rows = [
        (name, channel, base[i][channel], new[i][channel], ratios[i][channel])
        for i, name in enumerate(names)
        for channel in range(len(base[i]))
    ]
    write_csv(out / CHANNELS, ["run", "channel", "base", "new", "ratio"], rows)
    print(f"{'run':30} {'CI base':>8} {'CI new':>8} {'median base/new':>16}")
    for name, b, n, values in zip(names, base, new, ratios, strict=True):
        print(f"{name:30} {b.mean():8.3f} {n.mean():8.3f} {np.median(values):16.3f}")
    runs = dict(zip(names, zip(base, new, strict=True), strict=True))
    save_both(sorted_channels(runs).figure(), out / "channels_sorted")
    save_both(ratio_density(runs).figure(), out / "channels_ratio")


def _run_name(run: str, taken: Sequence[str]) -> str:
    from tuning.run import open_run

    cfg = open_run(run).cfg
    oracle = " (oracle)" * (cfg.DATASET.SUBSAMPLE_CLASSES == "all")
    name = f"{cfg.TRAINER.NAME}{oracle}, seed {cfg.SEED}"
    return name if name not in taken else f"{name} #{len(taken) + 1}"


def nearest_words(args: argparse.Namespace) -> None:
    """Print and save, for each learned context token, the vocabulary's nearest embeddings."""
    import torch

    from clip.clip import find_backbone
    from clip.simple_tokenizer import SimpleTokenizer
    from tuning.run import open_run

    run = open_run(args.runs[0], args.backbone)
    state = run.checkpoint.get("state_dict", {})
    contexts = {name: value for name, value in state.items() if name.split(".")[-1] == "ctx"}
    if not contexts:
        raise UserError(f"{run.cfg.TRAINER.NAME} learns no context; it has: {', '.join(state)}")
    model = find_backbone(run.backbone_name(), run.cfg.MODEL.BACKBONE.ARCHITECTURE).build()
    embedding = model.token_embedding.weight.detach().float()
    known = embedding.abs().sum(dim=1).nonzero().squeeze(1)  # a small model stores few words
    decoder = SimpleTokenizer()
    rows = []
    for name, ctx in contexts.items():
        for token, vector in enumerate(ctx.detach().float().reshape(-1, ctx.shape[-1])):
            distance = torch.cdist(vector[None], embedding[known])[0]
            near = distance.topk(min(args.top, len(known)), largest=False)
            words = [decoder.decode([int(known[i])]).strip() for i in near.indices]
            rows += [
                (name, token, rank, word, float(d))
                for rank, (word, d) in enumerate(zip(words, near.values, strict=True), start=1)
            ]
            shown = ", ".join(f"{w} {d:.2f}" for w, d in zip(words, near.values, strict=True))
            print(f"{name}[{token}]: {shown}")
    head = ["parameter", "token", "rank", "word", "distance"]
    write_csv(Path(args.out) / "nearest_words.csv", head, rows)


def confusion(args: argparse.Namespace) -> None:
    """Print the most frequent confusions; save the matrix and its picture."""
    from experiments.features import batches, load_run

    analyzed = load_run(args.runs[0], args.root, args.classes, args.backbone)
    names = list(analyzed.data.classnames)
    counts = np.zeros((len(names), len(names)), int)
    for batch in batches(analyzed):
        np.add.at(counts, (batch.labels.numpy(), batch.logits.argmax(dim=1).numpy()), 1)
    out = Path(args.out)
    write_csv(
        out / "confusion.csv",
        ["class", *names],
        ((name, *row) for name, row in zip(names, counts.tolist(), strict=True)),
    )
    wrong = counts - np.diag(counts.diagonal())
    print(f"accuracy {100 * counts.diagonal().sum() / counts.sum():.2f} %; most often confused:")
    for place in np.argsort(wrong, axis=None)[::-1][: args.top]:
        true, taken = np.unravel_index(place, wrong.shape)
        if wrong[true, taken]:
            share = 100 * wrong[true, taken] / counts[true].sum()
            print(f"  {names[true]} taken for {names[taken]}: {wrong[true, taken]} ({share:.0f} %)")
    side = min(12, max(3.6, 0.22 * len(names) + 1.5))
    figure, axis = plt.subplots(figsize=(side, side))
    draw_matrix(axis, counts, names)
    save_both(figure, out / "confusion")


def embedding(args: argparse.Namespace) -> None:
    """Save a t-SNE map of image features and class text features.

    Each kind is centered first: CLIP's images and texts lie in two cones apart.
    """
    import torch
    from sklearn.manifold import TSNE

    from experiments.features import batches, load_run

    analyzed = load_run(args.runs[0], args.root, args.classes, args.backbone)
    names = list(analyzed.data.classnames)
    seen = list(batches(analyzed))
    images, labels = (torch.cat([getattr(b, key) for b in seen]) for key in ("image", "labels"))
    text = seen[0].text if seen[0].text.dim() == 2 else torch.cat([b.text for b in seen]).mean(0)
    if len(images) > args.max_images:
        chosen = torch.linspace(0, len(images) - 1, args.max_images).long()
        images, labels = images[chosen], labels[chosen]
    points = torch.cat([images - images.mean(dim=0), text - text.mean(dim=0)]).numpy()
    perplexity = min(30, (len(points) - 1) / 3)
    xy = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    kinds = ["image"] * len(images) + ["text"] * len(text)
    classes = [names[i] for i in [*labels.tolist(), *range(len(text))]]
    out = Path(args.out)
    rows = ((k, c, *p) for k, c, p in zip(kinds, classes, xy.tolist(), strict=True))
    write_csv(out / EMBEDDING, ["kind", "class", "x", "y"], rows)
    save_both(embedding_map(kinds, classes, xy).figure(), out / "embedding")

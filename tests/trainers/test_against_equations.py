"""Six full-batch SGD steps against each method's equations, written out without any of our code.

The oracle uses OpenAI's model class alone: all 77 tokens of every prompt, torch's own optimizer.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from clip import tokenize
from clip.clip import load_state_dict
from clip.model import build_model

STEPS, LR = 6, 0.0035
NAMES = ["ant", "brown bear", "cat"]  # the base half of the pictures' five classes
NEW = ["desert fox", "eel"]


class Oracle:
    """The frozen towers, and one full batch of pictures."""

    def __init__(self, backbone, images, labels):
        self.clip = build_model(load_state_dict(backbone)).float()
        self.clip.requires_grad_(False)
        self.images, self.labels = images, labels
        self.tau = self.clip.logit_scale.exp()

    def text(self, names, ctx, deep=(), words=""):
        """ctx (M,d): features of [SOS][ctx][words][name][.][EOT], deep[i] replacing the context."""
        m = ctx.shape[-2]
        tokens = tokenize([" ".join(["X"] * m) + f" {words} {name}." for name in names])
        x = self.clip.token_embedding(tokens)
        x = torch.cat([x[:, :1], ctx.expand(len(names), m, -1), x[:, 1 + m :]], dim=1)
        x = (x + self.clip.positional_embedding).transpose(0, 1)
        for i, block in enumerate(self.clip.transformer.resblocks):
            if 0 < i <= len(deep):
                vectors = deep[i - 1].unsqueeze(1).expand(-1, len(names), -1)
                x = torch.cat([x[:1], vectors, x[1 + m :]])
            x = block(x)
        x = self.clip.ln_final(x.transpose(0, 1))
        return x[torch.arange(len(names)), tokens.argmax(-1)] @ self.clip.text_projection

    def image(self, images, prompts=None, deep=()):
        v = self.clip.visual
        x = v.embed(images)
        if prompts is not None:
            x = torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1)
        x = v.ln_pre(x).transpose(0, 1)
        for i, block in enumerate(v.transformer.resblocks):
            if 0 < i <= len(deep):
                n = len(deep[i - 1])
                x = torch.cat([x[:-n], deep[i - 1].unsqueeze(1).expand(-1, x.shape[1], -1)])
            x = block(x)
        return v.ln_post(x[0]) @ v.proj

    def sentences(self, template, names):
        return self.clip.encode_text(tokenize([template.format(n) for n in names]))

    def itm(self, f, e):
        return self.tau * F.normalize(f, dim=-1) @ F.normalize(e, dim=-1).t()


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


# Each method: (features of images and names, its further losses) from its parameters p.


def coop(o, p, images, names):
    return o.image(images), o.text(names, p["ctx"])


def no_more(o, p, f, e):
    return 0


def kg(o, p, f, e):
    frozen = o.sentences("a photo of a {}.", NAMES)
    return 2.0 * (1 - (unit(e) * unit(frozen)).sum(-1).mean())


def cocoop(o, p, images, names):
    f = o.image(images)
    hidden = F.relu(F.linear(unit(f), p["meta_net.linear1.weight"], p["meta_net.linear1.bias"]))
    shift = F.linear(hidden, p["meta_net.linear2.weight"], p["meta_net.linear2.bias"])
    return f, torch.stack([o.text(names, p["ctx"] + s) for s in shift])


def maple(o, p, images, names):
    vectors = [p["ctx"], p["deep.0"], p["deep.1"]]
    first, *deep = (
        F.linear(v, p[f"projections.{i}.weight"], p[f"projections.{i}.bias"])
        for i, v in enumerate(vectors)
    )
    return o.image(images, first, deep), o.text(names, vectors[0], vectors[1:], "of a")


def vpt(o, p, images, names):
    f = o.image(images, p["vision.prompts"], [p["vision.deep.0"], p["vision.deep.1"]])
    return f, o.sentences("a photo of a {}.", names)


def clip_adapter(o, p, images, names):
    f = o.image(images)
    a = F.relu(F.linear(F.relu(F.linear(f, p["fc.0.weight"])), p["fc.2.weight"]))
    return 0.2 * a + 0.8 * f, o.sentences("a photo of a {}.", names)


def promptsrc(o, p, images, names):
    f = o.image(images, p["vision.prompts"], [p["vision.deep.0"], p["vision.deep.1"]])
    return f, o.text(names, p["ctx"], [p["deep.0"]])


def src_losses(o, p, f, e):
    import open_clip

    templates = open_clip.OPENAI_IMAGENET_TEMPLATES[:60]
    frozen_e = torch.stack(
        [o.clip.encode_text(tokenize([t(n) for n in NAMES])) for t in templates]
    ).mean(0)
    frozen_f = o.image(o.images)
    q = o.itm(frozen_f, frozen_e).softmax(-1)
    kl = (q * (q.log() - o.itm(f, e).log_softmax(-1))).sum() / q.numel()
    text = 25 * (unit(e) - unit(frozen_e)).abs().mean()
    return text + 10 * (unit(f) - unit(frozen_f)).abs().mean() + kl


METHODS = {
    "CoOp": (coop, no_more),
    "KgCoOp": (coop, kg),
    "CoCoOp": (cocoop, no_more),
    "MaPLe": (maple, no_more),
    "VPT": (vpt, no_more),
    "CLIPAdapter": (clip_adapter, no_more),
    "PromptSRC": (promptsrc, src_losses),
}


def itm_logits(o, f, e):
    if e.dim() == 2:
        return o.itm(f, e)
    return torch.cat([o.itm(f[j : j + 1], e[j]) for j in range(len(f))])


def cat_logits(p, x, kind):
    x = p[f"cat.cwt_{kind}.scale"] * x + p[f"cat.cwt_{kind}.bias"]
    return x @ p["cat.classifier.weight"].t() + p["cat.classifier.bias"]


def expected_run(o, p, method, dept):
    """Losses of the six steps, and the final parameters."""
    features, more = METHODS[method]
    p = {name: value.clone().requires_grad_() for name, value in p.items()}
    head = [v for name, v in p.items() if name.startswith("cat.")]
    groups = [{"params": [v for name, v in p.items() if not name.startswith("cat.")]}]
    groups += [{"params": head}] if head else []
    sgd = torch.optim.SGD(groups, lr=LR, momentum=0.9, weight_decay=5e-4)
    losses, average = [], dict.fromkeys(p, 0)
    gauss = [np.exp(-((e - 3) ** 2) / (2 * 1.5**2)) for e in range(1, STEPS + 1)]
    for step in range(STEPS):
        # Constant warm-up for one epoch, then the cosine from its beginning.
        cosine = 0.5 * (1 + np.cos(np.pi * max(step - 1, 0) / STEPS))
        for group, multiple in zip(sgd.param_groups, (1, 6.5), strict=False):
            group["lr"] = 1e-5 if step == 0 else LR * multiple * cosine
        f, e = features(o, p, o.images, NAMES)
        loss = F.cross_entropy(itm_logits(o, f, e), o.labels)
        if dept:
            own = e[o.labels] if e.dim() == 2 else e[torch.arange(len(f)), o.labels]
            z = torch.cat([cat_logits(p, own, "text"), cat_logits(p, f, "image")])
            loss = 0.3 * loss + 0.7 * F.cross_entropy(z, o.labels.repeat(2))
        loss = loss + more(o, p, f, e)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
        weight = gauss[step] / sum(gauss)
        average = {name: average[name] + weight * v.detach().double() for name, v in p.items()}
    final = average if method == "PromptSRC" else p
    return losses, {name: v.detach().float() for name, v in final.items()}


def expected_logits(o, p, method, dept, images, names):
    with torch.no_grad():
        f, e = METHODS[method][0](o, p, images, names)
        logits = itm_logits(o, f, e)
        if dept and names == NAMES:
            logits = 0.3 * logits + 0.7 * cat_logits(p, f, "image")
    return logits


@pytest.mark.parametrize("dept", [False, True], ids=["bare", "DePT"])
@pytest.mark.parametrize("method", METHODS)
def test_six_steps(command, make_trainer, backbone, tmp_path, method, dept):
    name = f"DePT_{method}" if dept else method
    options = {
        "DATASET__SUBSAMPLE_CLASSES": "base",
        "DATALOADER__TRAIN_X__BATCH_SIZE": 6,
        "OPTIM__MAX_EPOCH": STEPS,
        "TRAINER__COOP__W": 2.0,
        "TRAINER__PROMPTSRC__GPA_MEAN": 3.0,  # weights that no epoch dominates
        "TRAINER__PROMPTSRC__GPA_STD": 1.5,
        "TEST__SAVE_PREDICTIONS": True,
    }
    trainer = make_trainer(name, output=tmp_path / "start", **options)
    batch = next(iter(trainer.train_loader_x))
    oracle = Oracle(backbone, batch["img"], batch["label"])
    names = trainer.method.names()  # by the shortest one of each: the oracle knows no modules
    short = {own: name for name, own in sorted(names.items(), key=lambda pair: -len(pair[0]))}
    start = {short[own]: value for own, value in trainer.method.trained_state().items()}
    start_file = tmp_path / "start.pth"
    torch.save({"state_dict": start}, start_file)
    losses, final = expected_run(oracle, start, method, dept)

    options["MODEL__INIT_WEIGHTS"] = start_file
    train.main(command(name, output=tmp_path / "base", **options))
    lines = (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line)["loss"] for line in lines]
    assert measured == pytest.approx(losses, abs=2e-4)

    del options["MODEL__INIT_WEIGHTS"]
    options["DATASET__SUBSAMPLE_CLASSES"] = "new"
    new = ("--eval-only", "--model-dir", str(tmp_path / "base"), "--load-epoch", str(STEPS))
    train.main(command(name, *new, output=tmp_path / "new", **options))
    for folder, names, loader in (
        ("base", NAMES, trainer.test_loader),
        ("new", NEW, make_trainer(name, output=tmp_path / "x", **options).test_loader),
    ):
        saved = np.load(tmp_path / folder / "predictions.npz")
        images = torch.cat([b["img"] for b in loader])
        logits = expected_logits(oracle, final, method, dept, images, names)
        np.testing.assert_allclose(saved["logits"], logits, atol=5e-3)
        assert list(saved["classnames"]) == [
            n.replace(" ", "_") if n == "brown bear" else n for n in names
        ]


STARTS = [
    # Trainer, its options, its number of vectors; the words start it, and the rest stays.
    ("CoOp", {"TRAINER__COOP__CTX_INIT": "a photo of a"}, 4),
    ("CoOp", {"TRAINER__COOP__CTX_INIT": "an x-ray of"}, 3),  # five tokens, three words
    ("KgCoOp", {}, 4),
    ("CoCoOp", {}, 4),
    ("MaPLe", {}, 2),
    ("PromptSRC", {}, 4),
    ("PromptSRC", {"TRAINER__PROMPTSRC__N_CTX_TEXT": 2}, 2),
]


@pytest.mark.parametrize("trainer,options,n", STARTS)
def test_a_start_from_words_is_that_sentence(make_trainer, trainer, options, n):
    """Without deep prompts, the text features at the start are those of the initial words."""
    depths = {"TRAINER__MAPLE__PROMPT_DEPTH": 1, "TRAINER__PROMPTSRC__PROMPT_DEPTH_TEXT": 1}
    method = make_trainer(trainer, **depths, **options).method.eval()
    if trainer == "CoCoOp":
        with torch.no_grad():
            for parameter in method.context.meta_net.parameters():
                parameter.zero_()
    words = options.get("TRAINER__COOP__CTX_INIT", "a photo of a")
    sentences = [f"{words} {name.replace('_', ' ')}." for name in method.classes.names]
    expected = method.encoders.text.encode(sentences)
    assert method.trained()[method.names()["ctx"]].shape == (n, 64)
    with torch.no_grad():
        features = method.features(torch.zeros(2, 3, 32, 32)).text
    torch.testing.assert_close(features, expected.expand_as(features), rtol=1e-4, atol=1e-4)


def test_more_vectors_than_words_start_at_random(make_trainer, capsys):
    method = make_trainer("MaPLe", TRAINER__MAPLE__N_CTX=6).method
    assert '"a photo of a" has 4 tokens for 6 vectors' in capsys.readouterr().out
    assert method.trained()[method.names()["ctx"]].shape == (6, 64)
    assert method.layout.prefix_length == 7

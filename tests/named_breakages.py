"""Breakages that a test must notice: (what, the text, what it becomes). For mutate.py.

A text is looked for in every file; one that is found nowhere is reported.
"""

BREAKAGES = (
    (
        "all weight on the last epoch",
        "weight * value.double()",
        "0 + value.double() * (self.epoch + 1 == self.max_epoch)",
    ),  # fmt: skip
    ("epochs counted from 0", "for e in range(1, epochs + 1)]", "for e in range(epochs)]"),
    ("epochs counted from 2", "for e in range(1, epochs + 1)]", "for e in range(2, epochs + 2)]"),
    ("Gaussian without the half", "-0.5 * ((e - mean)", "-1.0 * ((e - mean)"),
    ("weights not of sum 1", "[w / sum(weights) for w in weights]", "[w for w in weights]"),
    ("μ", "GPA_MEAN = 15.0", "GPA_MEAN = 5.0"),
    ("σ", "GPA_STD = 1.0", "GPA_STD = 10.0"),
    (
        "deep prompts too large",
        "torch.randn(n, width) * 0.02 for",
        "torch.randn(n, width) * 0.2 for",
    ),
    ("vision prompts too large", "(torch.randn(n, width) * 0.02)", "(torch.randn(n, width))"),
    ("random context too large", "encoders.text.width) * 0.02", "encoders.text.width) * 0.2"),
    ("context per class too large", "*initial.shape) * 0.02", "*initial.shape)"),
    ("uniform prompts", "torch.randn(n, width) * 0.02 for", "torch.rand(n, width) * 0.02 for"),
    (
        "one start for all layers",
        "torch.randn(n, width) * 0.02 for",
        "torch.ones(n, width) * 0.02 for",
    ),
    ("starts from the last words", "embed(ids[:n])", "embed(ids[-n:])"),
    ("the words left over", "tuple(ids[n:])", "tuple(ids[:-n])"),
    ("KgCoOp's words", 'c.CTX_INIT or "a photo of a"', 'c.CTX_INIT or "this is a photo"'),
    ("KgCoOp's w", "COOP.W = 8.0", "COOP.W = 1.0"),
    ("KgCoOp's direction", "1 - cosine.mean()", "1 + cosine.mean()"),
    ("middle split one off", "half = n_ctx // 2", "half = (n_ctx + 1) // 2"),
    (
        "middle: the halves swapped",
        "context[:half] + name + context[half:]",
        "context[half:] + name + context[:half]",
    ),  # fmt: skip
    ("front behind the dot", "return name + context + rest", "return name + rest + context"),
    ("end behind the dot", "return context + name + rest", "return context + rest + name"),
    ("no dot", 'encode(f"{name}.")', 'encode(f"{name}")'),
    (
        "underscores stay",
        'name.replace("_", " ") for name in self.names',
        "name for name in self.names",
    ),
    (
        "ZeroshotCLIP2 not normalised",
        "torch.stack([unit(f) for f in features])",
        "torch.stack(features)",
    ),
    ("ZeroshotCLIP2 without the template", "templates.append(classes.template)", "pass"),
    (
        "ZeroshotCLIP2: the last template",
        "for template in templates]\n    if",
        "for template in templates[1:]]\n    if",
    ),  # fmt: skip
    ("towers in training mode", "        self.encoders.eval()\n", ""),
    ("adapter's reduction", "CLIP_ADAPTER.REDUCTION = 4", "CLIP_ADAPTER.REDUCTION = 2"),
    (
        "adapter's reduction left out",
        "Adapter(encoders.embed_dim, c.REDUCTION)",
        "Adapter(encoders.embed_dim)",
    ),
    ("adapter's ratio", "CLIP_ADAPTER.RATIO = 0.2", "CLIP_ADAPTER.RATIO = 0.8"),
    (
        "adapter's ratio turned",
        "self.ratio * self.adapter(f) + (1 - self.ratio) * f",
        "(1 - self.ratio) * self.adapter(f) + self.ratio * f",
    ),  # fmt: skip
    (
        "adapter without its last ReLU",
        "nn.Linear(dim // reduction, dim, bias=False),\n            nn.ReLU(),",
        "nn.Linear(dim // reduction, dim, bias=False),",
    ),  # fmt: skip
    ("π without its bottleneck", "nn.Linear(dim, dim // 16)", "nn.Linear(dim, dim // 8)"),
    ("π of features as they are", "self.meta_net(unit(image))", "self.meta_net(image)"),
    (
        "λ turned",
        "(1 - self.weight).to(itm.dtype) * itm, self.weight.to(cat.dtype) * cat",
        "self.weight.to(itm.dtype) * itm, (1 - self.weight).to(cat.dtype) * cat",
    ),  # fmt: skip
    (
        "λ on regularisers",
        '{**losses, "itm": itm, "cat": cat}',
        '{**{k: v * 0.3 for k, v in losses.items()}, "itm": itm, "cat": cat}',
    ),  # fmt: skip
    ("the head at the prompts' rate", "lr * self.lr_mult", "lr"),
    ("the ITM head alone on base classes", "        if self.rows is None:\n", "        if True:\n"),
    (
        "fusion on new classes",
        "        self.rows = rows\n",
        "        self.rows = list(range(len(self.classes.keys)))\n",
    ),  # fmt: skip
    (
        "text distance not normalised",
        "(unit(features.text) - self.frozen_text)",
        "(features.text - self.frozen_text)",
    ),
    ("KL over the batch alone", "divergence / logits.numel()", "divergence / len(logits)"),
    ("80 templates", "_TEMPLATES = 60", "_TEMPLATES = 80"),
    ("temperature not exp", ".exp()", " * 1.0"),
    ("base half rounds down", "math.ceil(len(labels) / 2)", "len(labels) // 2"),
    ("new shots of val", "min(shots, 4)", "min(shots, 5)"),
    ("H arithmetic", "2 * base * new / (base + new) if", "(base + new) / 2 if"),
    ("H lines arithmetic", "2 * base * new / np.maximum(base + new, 1e-9)", "(base + new) / 2"),
    ("population spread", "stdev(values) if", "pstdev(values) if"),
    ("cosine from the first epoch", "decay(epoch - warmup)", "decay(epoch)"),
    ("macro F1 over all classes", "f1[present].mean()", "f1.mean()"),
    ("flip always", "T.RandomHorizontalFlip()", "T.RandomHorizontalFlip(1.0)"),
    ("no scale", "scale=i.RRCROP_SCALE, ", ""),
    ("no interpolation", ", interpolation=_interpolation(i)\n", "\n"),
    ("weight decay left out", '"weight_decay": optim_cfg.WEIGHT_DECAY,', ""),
    ("momentum left out", '"momentum": o.MOMENTUM,\n            "dampening"', '"dampening"'),
)

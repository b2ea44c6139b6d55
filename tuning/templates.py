"""Frozen text features of hand-written templates, as methods that train no prompt take them.

Shape letters: method.py's.
"""

from __future__ import annotations

import torch

from clip.open_clip_parts import selected_imagenet_templates
from clip.prompting import Encoders, PromptLayout, TextEncoder

from .method import Classes, unit

TEMPLATES = ("own", "ensemble")


def template_features(
    encoders: Encoders,
    classes: Classes,
    templates: str = "own",
    joined: bool = False,
    normalized: bool = False,
    underscores: bool = False,
) -> torch.Tensor:
    """(C,D), at least fp32: the mean over templates of text features.

    Args:
        encoders: whose text tower.
        classes: their names, and the data set's own template.
        templates: "own", or the "ensemble" of seven that OpenAI selected on ImageNet.
        joined: whether the ensemble takes in the data set's own.
        normalized: whether the mean is one of normalized features, and normalized again.
        underscores: whether names keep theirs instead of spaces.
    """
    chosen = [classes.template]
    if templates == "ensemble":
        chosen = selected_imagenet_templates() + chosen * joined
    print(f"Prompt: {classes.template}" if len(chosen) == 1 else f"Ensemble of {len(chosen)}")
    features = []
    for template in chosen:
        if underscores:
            sentences = [template.replace("{}", name) for name in classes.names]
        else:
            sentences = classes.sentences(template)
        encoded = encoders.text.encode(sentences)
        encoded = encoded.to(torch.promote_types(encoded.dtype, torch.float32))
        features.append(unit(encoded) if normalized else encoded)
    mean = torch.stack(features).mean(dim=0)
    return unit(mean) if normalized else mean


def template_layout(encoder: TextEncoder, classes: Classes) -> PromptLayout:
    """The layout of the data set's template filled with every class name.

    The words before the name are shared by all classes, where a space ends them.
    """
    head, name, tail = classes.template.partition("{}")
    if name and "{}" not in tail and (not head or head.endswith(" ")):
        return encoder.layout(classes.names, 0, words=encoder.token_ids(head), tail=tail)
    layout = PromptLayout.of_texts(classes.sentences(), encoder.context_length)
    return layout.to(encoder.positional_embedding.device)

"""Both prompt-taking encoders of one frozen CLIP."""

from __future__ import annotations

from copy import copy

import torch
from torch import nn

from ..model import CLIP
from .image import ImageEncoder
from .text import TextEncoder


class Encoders(nn.Module):
    """The two prompt-taking encoders of one frozen CLIP, and its temperature.

    `text`: TextEncoder; `image`: ImageEncoder; `logit_scale`: log τ. They share the weights of
    `clip_model`. `note`: what had to be assumed of it. fast=False takes the plain path everywhere.
    """

    def __init__(self, clip_model: CLIP, fast: bool = True) -> None:
        super().__init__()
        self.text = TextEncoder(clip_model, fast)
        self.image = ImageEncoder(clip_model, fast)
        self.logit_scale = clip_model.logit_scale
        self.note = clip_model.note
        self.requires_grad_(False)

    def twice_differentiable(self) -> Encoders:
        """These encoders on the plain path, without tokens after the longest text.

        They have the same weights. On a fast path gradients have no gradient; nor have they here
        unless attention is PyTorch's own (`sdpa_kernel(SDPBackend.MATH)`).
        """
        encoders = copy(self)
        encoders._modules = {"text": copy(self.text), "image": copy(self.image)}
        encoders.text.fast = encoders.image.fast = False
        encoders.text.padded = False
        return encoders

    @property
    def embed_dim(self) -> int:
        """D, the width of both towers' features."""
        return self.text.text_projection.shape[1]

    @property
    def temperature(self) -> torch.Tensor:
        """τ = exp(logit_scale), 100 for the released weights; at least fp32."""
        scale = self.logit_scale
        return scale.to(torch.promote_types(scale.dtype, torch.float32)).exp()

"""CLIP (Radford et al. 2021, arXiv 2103.00020) with OpenAI's attribute and state-dict names.

Letters in shape comments: B images or texts, I pixels a side, G patches a side, L sequence length,
W tower width, D embedding width.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dassl.utils import UserError

from .architecture import OPENAI, QUICK_GELU, Architecture
from .blank import embedding, is_blank, random
from .resnet import AttentionPool2d as AttentionPool2d  # OpenAI has them in this file
from .resnet import Bottleneck as Bottleneck
from .resnet import ModifiedResNet


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in fp32 whatever the tower's precision, as the release does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…,W) → (…,W), in the precision of x."""
        weight = self.weight.to(torch.promote_types(x.dtype, torch.float32))
        bias = self.bias.to(weight.dtype)
        return F.layer_norm(x.to(weight.dtype), self.normalized_shape, weight, bias, self.eps).to(
            x.dtype
        )


class QuickGELU(nn.Module):
    """x · σ(1.702 x), the GELU approximation the released weights were trained with."""

    beta = 1.702

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: any shape → x σ(1.702 x)."""
        return x * torch.sigmoid(self.beta * x)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: x + attention(ln_1 x), then x + mlp(ln_2 x)."""

    mlp: Any  # its layers have names

    def __init__(
        self,
        width: int,
        heads: int,
        attn_mask: torch.Tensor | None = None,
        hidden: int | None = None,
        activation: str = QUICK_GELU,
    ) -> None:
        super().__init__()
        hidden = hidden or width * 4
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, hidden),
                gelu=QuickGELU() if activation == QUICK_GELU else nn.GELU(),
                c_proj=nn.Linear(hidden, width),
            )
        )
        self.ln_2 = LayerNorm(width)
        self.attn_mask = attn_mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (L,B,W) → (L,B,W)."""
        mask = None
        if self.attn_mask is not None:
            mask = self.attn_mask[: len(x), : len(x)].to(x)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Residual attention blocks, one after the other."""

    resblocks: Any  # of `ResidualAttentionBlock`

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        attn_mask: torch.Tensor | None = None,
        hidden: int | None = None,
        activation: str = QUICK_GELU,
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(
            *(
                ResidualAttentionBlock(width, heads, attn_mask, hidden, activation)
                for _ in range(layers)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (L,B,W) → (L,B,W)."""
        return self.resblocks(x)


class VisionTransformer(nn.Module):
    """ViT image tower; the feature is the class token after the last block, projected to D."""

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        hidden: int | None = None,
        activation: str = QUICK_GELU,
    ) -> None:
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(random(width, scale=scale))
        patches = (input_resolution // patch_size) ** 2
        self.positional_embedding = nn.Parameter(random(patches + 1, width, scale=scale))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, hidden=hidden, activation=activation)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(random(width, output_dim, scale=scale))

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """image: (B,3,I,I) → (B,1+patches,W), class token first, positions added, before ln_pre."""
        x = self.conv1(image).flatten(2).transpose(1, 2)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: (B,3,I,I) → (B,D)."""
        x = self.ln_pre(self.embed(image))
        x = self.transformer(x.transpose(0, 1))[0]
        return self.ln_post(x) @ self.proj


class CLIP(nn.Module):
    """The two towers. `vision_layers` is an int for a ViT, a 4-tuple for a ResNet."""

    note = ""  # what had to be assumed of it, to be told

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: tuple[int, int, int, int] | int,
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
        vision_heads: int | None = None,
        vision_hidden: int | None = None,
        transformer_hidden: int | None = None,
        activation: str = QUICK_GELU,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.visual: ModifiedResNet | VisionTransformer
        if isinstance(vision_layers, tuple | list):
            first, second, third, fourth = vision_layers
            self.visual = ModifiedResNet(
                layers=(first, second, third, fourth),
                output_dim=embed_dim,
                heads=vision_width * 32 // 64,
                input_resolution=image_resolution,
                width=vision_width,
            )
        else:
            assert vision_patch_size is not None
            heads = vision_heads or vision_width // 64
            shape = (image_resolution, vision_patch_size, vision_width, vision_layers, heads)
            self.visual = VisionTransformer(*shape, embed_dim, vision_hidden, activation)
        sizes = (transformer_width, transformer_layers, transformer_heads)
        self.transformer = Transformer(
            *sizes, self.build_attention_mask(), transformer_hidden, activation
        )
        self.token_embedding = embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if not is_blank():
            self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Random weights at the scales of the CLIP paper (section 2.4 and its released code)."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if isinstance(self.visual, ModifiedResNet):
            pool = self.visual.attnpool
            for projection in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
                nn.init.normal_(projection.weight, std=pool.c_proj.in_features**-0.5)
        width, layers = self.transformer.width, self.transformer.layers
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def build_attention_mask(self) -> torch.Tensor:
        """(context, context) additive causal mask: −∞ above the diagonal."""
        mask = torch.full((self.context_length, self.context_length), float("-inf"))
        return mask if is_blank() else mask.triu_(1)

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in: that of the first image weights."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """image: (B,3,I,I) → (B,D), not normalized."""
        return self.visual(image.type(self.dtype))

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """text: (B,L) token ids, EOT the largest id → (B,D), not normalized."""
        x = self.token_embedding(text).type(self.dtype)
        x = x + self.positional_embedding[: text.shape[1]].type(self.dtype)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)
        x = self.ln_final(x)
        eot = text.argmax(dim=-1)
        return x[torch.arange(len(x), device=x.device), eot] @ self.text_projection

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """→ logits per image (B,C) and per text (C,B): τ × cosine similarity."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        return logits, logits.t()


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Put convolutions, linear layers and projections into `dtype`.

    Norms, embeddings and the logit scale keep theirs, as in the release: they are cast where used.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
        for name in ("text_projection", "proj"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                getattr(module, name).data = getattr(module, name).data.to(dtype)


# Entries of the released archives that describe the model instead of being weights.
_DESCRIPTIONS = ("input_resolution", "context_length", "vocab_size")


def _sizes(state: dict[str, torch.Tensor]) -> dict:
    """Read the sizes of `CLIP.__init__` off the shapes of a state dict."""
    if any(key.startswith("text.") for key in state):
        raise UserError(
            "these weights have a text tower of their own (keys start with 'text.', as SigLIP's "
            "do): it isn't CLIP's and can't be run here"
        )

    def count(pattern: str) -> int:
        return len({m.group(1) for k in state if (m := re.match(pattern, k))})

    vision_layers: int | tuple[int, ...]
    patch: int | None
    if "visual.proj" in state:
        vision_width = state["visual.conv1.weight"].shape[0]
        patch = state["visual.conv1.weight"].shape[-1]
        grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        vision_layers = count(r"visual\.transformer\.resblocks\.(\d+)\.")
        resolution = state["visual.conv1.weight"].shape[-1] * grid
    else:
        vision_layers = tuple(count(rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
        vision_width = state["visual.layer1.0.conv1.weight"].shape[0]
        patch = None
        grid = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        resolution = grid * 32
    width = state["ln_final.weight"].shape[0]
    return {
        "embed_dim": state["text_projection"].shape[1],
        "image_resolution": resolution,
        "vision_layers": vision_layers,
        "vision_width": vision_width,
        "vision_patch_size": patch,
        "context_length": state["positional_embedding"].shape[0],
        "vocab_size": state["token_embedding.weight"].shape[0],
        "transformer_width": width,
        "transformer_heads": width // 64,
        "transformer_layers": count(r"transformer\.resblocks\.(\d+)\."),
        "vision_hidden": _hidden(state, "visual.transformer."),
        "transformer_hidden": _hidden(state, "transformer."),
    }


def _hidden(state: dict[str, torch.Tensor], tower: str) -> int | None:
    """The width between the MLPs' two layers; None if the tower has no blocks."""
    weight = state.get(f"{tower}resblocks.0.mlp.c_fc.weight")
    return None if weight is None else weight.shape[0]


def build_model(state_dict: dict[str, torch.Tensor], architecture: Architecture = OPENAI) -> CLIP:
    """Build a CLIP in eval mode from a state dict with OpenAI's names, sizes read off its shapes.

    As in OpenAI's release, matrices become fp16 whatever the file holds: a fp32 run
    (`model.float()`) then sees the same rounded weights here as in every published CLIP
    prompt-tuning number. Those of other releases stay as they are (`architecture.half`).

    Raises:
        UserError: a tensor is missing, unknown, or of another shape than the model needs.
    """
    state = {k: v.to_dense() if v.is_sparse else v for k, v in state_dict.items()}
    state = {k: v for k, v in state.items() if k not in _DESCRIPTIONS}
    try:
        sizes = _sizes(state) | architecture.settings()
    except KeyError as error:
        raise UserError(
            f"not a CLIP state dict: it has no {error} (keys start with {sorted(state)[:3]}); "
            "OpenAI's names are expected"
        ) from None
    except (IndexError, OverflowError):
        raise UserError("not a CLIP state dict: a tensor has too few dimensions") from None
    # Created without memory, then given the tensors: no random initialization to throw away.
    with torch.device("meta"):
        try:
            model = CLIP(**sizes)
        except (ValueError, RuntimeError, ArithmeticError, AssertionError):
            raise UserError(f"no CLIP has the sizes of this state dict: {sizes}") from None
    expected = model.state_dict()
    wrong = [
        f"{k}: expected {tuple(v.shape)}, got {tuple(state[k].shape) if k in state else 'nothing'}"
        for k, v in expected.items()
        if k not in state or state[k].shape != v.shape
    ]
    wrong += [f"{k}: unknown" for k in state if k not in expected]
    if wrong:
        raise UserError(
            f"CLIP state dict does not fit the model its shapes describe: {'; '.join(wrong[:5])}"
            + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        )
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    model.load_state_dict(state, assign=True)
    if architecture.half:
        convert_weights(model)
    mask = CLIP.build_attention_mask(model)  # the meta device's mask has no values
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    return model.eval()

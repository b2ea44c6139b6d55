"""CLIP-LoRA (Zanella and Ben Ayed, CVPR workshops 2024, arXiv 2405.18541).

Low-rank changes of the attention's products with q, k and v in every block of both towers:

    x Wᵀ + (α/√r) drop(x) Aᵀ Bᵀ,   A (r,W), B (W,r)

with dropout of x in training. z = 100 f̂ êᵀ, the loss cross entropy. r 2, α 1, dropout .25; A starts
Kaiming-uniform and B as zeros, so at first it is CLIP. The text is "a photo of a {}." for every
data set. One setting for all data sets and shots; its authors publish all classes, not base to new.

Its own schedule counts iterations: N_ITERS times the shots, the cosine going down at each of them
to 1e-6. So that it is the same here, N_ITERS sets the epochs, the last of which trains no more when
the iterations are done; 0 leaves epochs and rates to OPTIM.

What the public code does otherwise: the scale is α/√r, where LoRA's paper (arXiv 2106.09685) has
α/r; here as well. It lists the blocks of a POSITION for towers of 12 and of 24; here it is by their
share of a tower. With a dropout of exactly 0 it takes another branch, whose gradient below goes
through W without the change; here it is the function's. Each text has a dropout of its own there;
here the words before the class names, the same for all classes, are run once and share theirs. It
encodes the validation and test images before the training, and uses them for nothing that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from clip.prompting import Change, Encoders, LowRank
from dassl.config import CfgNode, Check, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from tuning.method import Classes, Features, Method, cosine_logits
from tuning.prompts import WORDS, template_of
from tuning.trainer import PromptTrainer

TEMPERATURE = 100.0  # the code's, whatever CLIP's own
LAST_RATE = 1e-6
ENCODERS = ("both", "text", "vision")
# The public code's names of what is changed, and of the products in its files.
PARAMS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
# Which blocks, by a tower's number of them.
POSITIONS = {
    "all": lambda n: range(n),
    "bottom": lambda n: range(n // 3),
    "mid": lambda n: range(n // 3, 2 * n // 3),
    "up": lambda n: range(2 * n // 3, n),
    "half-bottom": lambda n: range(n // 2),
    "half-up": lambda n: range(n // 2, n),
    "top3": lambda n: range(n - 3, n),
}


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.CLIP_LORA, by the names of the public code's arguments."""
    cfg.TRAINER.CLIP_LORA = CfgNode()
    cfg.TRAINER.CLIP_LORA.R = 2  # r
    cfg.TRAINER.CLIP_LORA.ALPHA = 1.0  # α
    cfg.TRAINER.CLIP_LORA.DROPOUT_RATE = 0.25
    cfg.TRAINER.CLIP_LORA.ENCODER = "both"  # both | text | vision
    cfg.TRAINER.CLIP_LORA.POSITION = "all"  # which blocks
    cfg.TRAINER.CLIP_LORA.PARAMS = ("q", "k", "v")  # of q, k, v, o
    cfg.TRAINER.CLIP_LORA.N_ITERS = 0  # iterations for each shot, 500 of its own; 0: by OPTIM
    cfg.TRAINER.CLIP_LORA.PREC = "fp16"  # fp32, fp16, bf16, amp
    declare_checks(
        {
            "TRAINER.CLIP_LORA.R": whole(1),
            "TRAINER.CLIP_LORA.ALPHA": real(above=0),
            "TRAINER.CLIP_LORA.DROPOUT_RATE": Check("a share below 1", lambda x: 0 <= x < 1),
            "TRAINER.CLIP_LORA.N_ITERS": whole(0),
        }
    )


class Product(nn.Module):
    """A and B of one product of width W."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.w_lora_A = nn.Parameter(torch.empty(rank, width))
        nn.init.kaiming_uniform_(self.w_lora_A, a=math.sqrt(5))
        self.w_lora_B = nn.Parameter(torch.zeros(width, rank))


class LowRanks(nn.Module):
    """A and B of every changed product, numbered as in the public code's files.

    Args:
        places: tower ("text" or "vision"), its width and block of each layer_<i>, in order.
        params: which products.
        rank: r.
    """

    def __init__(
        self, places: Sequence[tuple[str, int, int]], params: Sequence[str], rank: int = 2
    ) -> None:
        super().__init__()
        self.places = [(tower, block) for tower, _, block in places]
        self.params = tuple(params)
        for i, (_, width, _) in enumerate(places):
            products = {PARAMS[part]: Product(width, rank) for part in params}
            self.add_module(f"layer_{i}", nn.ModuleDict(products))

    def changes(self, tower: str, scale: float, dropout: float) -> list[LowRank]:
        """Those of one tower."""
        found = []
        for i, (own, block) in enumerate(self.places):
            layer = self.get_submodule(f"layer_{i}")
            for part in self.params if own == tower else ():
                product = layer.get_submodule(PARAMS[part])
                a, b = product.get_parameter("w_lora_A"), product.get_parameter("w_lora_B")
                found.append(LowRank(block, part, a, b, scale, dropout))
        return found


class CLIPLoRAMethod(Method):
    """Both towers with low-rank changes of their attention.

    Args:
        lora: A and B.
        settings: R, ALPHA, ENCODER, PARAMS and POSITION, which a file of the public code names too.
        dropout: of what goes into A.
    """

    trained_modules = ("lora",)
    draws_inside = True

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        lora: LowRanks,
        settings: Mapping[str, Any],
        dropout: float = 0.25,
    ) -> None:
        super().__init__(encoders, classes)
        self.lora = lora
        self.settings = settings
        self.dropout = dropout
        self.image_tower_untouched = settings["ENCODER"] == "text"
        text = encoders.text
        self.layout = text.layout(classes.names, 0, words=text.token_ids(WORDS))

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> CLIPLoRAMethod:
        """From all keys of TRAINER.CLIP_LORA but N_ITERS.

        Raises:
            UserError: the image tower is a ResNet and to be changed, or an unknown choice.
        """
        c = cfg.TRAINER.CLIP_LORA
        check_choice("TRAINER.CLIP_LORA.ENCODER", c.ENCODER, ENCODERS)
        check_choice("TRAINER.CLIP_LORA.POSITION", c.POSITION, tuple(POSITIONS))
        if not c.PARAMS or len(set(c.PARAMS)) < len(c.PARAMS) or not set(c.PARAMS) <= set(PARAMS):
            shown = ", ".join(map(str, c.PARAMS)) or "none"
            raise UserError(f"TRAINER.CLIP_LORA.PARAMS is {shown}; some of: {', '.join(PARAMS)}")
        towers: list[tuple[str, Any]] = [("text", encoders.text), ("vision", encoders.image)]
        places = [
            (name, tower.width, block)
            for name, tower in towers
            if c.ENCODER in (name, "both")
            for block in POSITIONS[c.POSITION](tower.layers)
            if block >= 0
        ]
        if not places:
            raise UserError(f"TRAINER.CLIP_LORA.POSITION {c.POSITION} is no block of these towers")
        print(f"Prompt: {template_of(WORDS)}")
        print(f"Low-rank changes of {', '.join(c.PARAMS)} in {len(places)} blocks")
        keys = ("R", "ALPHA", "ENCODER", "PARAMS", "POSITION")
        settings = {key: c[key] for key in keys}
        return cls(encoders, classes, LowRanks(places, c.PARAMS, c.R), settings, c.DROPOUT_RATE)

    def _changes(self, tower: str) -> list[LowRank]:
        scale = self.settings["ALPHA"] / math.sqrt(self.settings["R"])
        return self.lora.changes(tower, scale, self.dropout if self.training else 0.0)

    def encode_text(self) -> torch.Tensor:
        """(C,D), with the text tower's changes."""
        features = self.text_of(self.layout, self._changes("text"))
        assert isinstance(features, torch.Tensor)
        return features

    def image_changes(self) -> Sequence[Change]:
        """The image tower's."""
        return self._changes("vision")

    def itm_logits(self, features: Features) -> torch.Tensor:
        """100 f̂ êᵀ, (B,C)."""
        return cosine_logits(features.image, features.text, TEMPERATURE)

    def check_source(self, settings: Mapping[str, Any]) -> None:
        """As `Method.check_source`; the public code's files tell r, α and where."""
        for key, own in self.settings.items():
            there = settings.get(key.lower(), own)
            if _plain(there) != _plain(own):
                raise UserError(
                    f"it was trained with {key.lower()} {there}, this run has {own}: "
                    f"set TRAINER.CLIP_LORA.{key} as in training"
                )


def _plain(value: Any) -> Any:
    """A list in any order as one in one."""
    return sorted(map(str, value)) if isinstance(value, (list, tuple)) else value


@TRAINER_REGISTRY.register()
class CLIP_LoRA(PromptTrainer):
    """CLIP-LoRA; its dropout differs between runs, so they aren't trained side by side."""

    method_class = CLIPLoRAMethod
    config_node = "CLIP_LORA"
    model_name = "clip_lora"
    may_differ = ()
    iterations = 0  # of all, where N_ITERS counts them

    @classmethod
    def steps_of(cls, cfg: CfgNode, batches: int) -> int:
        """As every trainer's; N_ITERS for each shot, where it is set.

        Raises:
            UserError: N_ITERS without a number of shots.
        """
        each, shots = cls.method_cfg(cfg).N_ITERS, cfg.DATASET.NUM_SHOTS
        if not each:
            return super().steps_of(cfg, batches)
        if shots < 1:
            raise UserError("TRAINER.CLIP_LORA.N_ITERS counts for each shot: set DATASET.NUM_SHOTS")
        return each * shots

    def build_data_loader(self) -> None:
        """As the engine's; N_ITERS sets the number of epochs."""
        super().build_data_loader()
        if not self.method_cfg(self.cfg).N_ITERS or self.train_loader_x is None:
            return
        batches = len(self.train_loader_x)
        self.iterations = self.steps_of(self.cfg, batches)
        self.max_epoch = -(-self.iterations // batches)
        print(f"{self.iterations:,} iterations, in {self.max_epoch:,} epochs")

    def model_update(self, names: str | list[str] | None = None) -> None:
        """As every trainer's; counted iterations have a rate of their own each, and an end."""
        if not self.iterations:
            return super().model_update(names)
        done = self.epoch * self.num_batches + self.batch_idx
        share = (1 + math.cos(math.pi * done / self.iterations)) / 2
        for optimizer in filter(None, self._optims.values()):
            for group in optimizer.param_groups:
                group["lr"] = LAST_RATE + (group["initial_lr"] - LAST_RATE) * share
        if done < self.iterations:
            super().model_update(names)

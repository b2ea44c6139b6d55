"""CoOp: Context Optimization (Zhou et al., IJCV 2022, arXiv 2109.01134).

A prompt is [SOS][V][class name][.][EOT] with a context V ∈ R^{M×d_t} that is learned and shared by
all classes, or one context per class (CSC).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clip.compat import load_clip_to_cpu as load_clip_to_cpu  # files from elsewhere look here
from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tuning.claims import Row
from tuning.method import Classes, Features, Method
from tuning.prompts import WORDS, public_words, resolve_words, starting_context
from tuning.trainer import PromptTrainer

# As controls of what other methods claim.
FROM_WORDS = Row("CoOp, words", "CoOp", {"TRAINER.COOP.CTX_INIT": WORDS})
FOUR_VECTORS = Row("CoOp, N(0, .02²)", "CoOp", {"TRAINER.COOP.N_CTX": "4"})
SIXTEEN_VECTORS = Row("CoOp, 16 vectors", "CoOp", {"TRAINER.COOP.N_CTX": "16"})


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.COOP and the ranges of its values."""
    cfg.TRAINER.COOP = CfgNode()
    cfg.TRAINER.COOP.N_CTX = 16  # M
    cfg.TRAINER.COOP.CSC = False  # one context per class
    # Words to start from; they set M. None: no words, also in a method that has words of its own.
    cfg.TRAINER.COOP.CTX_INIT = ""
    cfg.TRAINER.COOP.PREC = "fp16"  # fp32, fp16, bf16, amp
    cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"  # end, middle, front
    public_words(cfg, "TRAINER.COOP.CTX_INIT", none=None)
    declare_checks({"TRAINER.COOP.N_CTX": whole(1)})


class Context(nn.Module):
    """The context to learn. ctx: (M,d_t), or (C,M,d_t) with one per class.

    words: token ids of the frozen words after it.
    """

    def __init__(self, initial: torch.Tensor, words: Sequence[int] = ()) -> None:
        super().__init__()
        self.ctx = nn.Parameter(initial)
        self.words = words


def initial_context(c: CfgNode, encoders: Encoders, classes: Classes, words: str) -> Context:
    """The context to start from: some words, or random vectors where there are none.

    As in the original code, words start one context for all classes, whatever CSC says.
    """
    start = starting_context(encoders, words, c.N_CTX)
    per_class = c.CSC and not words
    if c.CSC and words:
        print("TRAINER.COOP.CSC has no effect: a context that starts from words is one for all")
    print(f"Initial context: {start.shown}{', one per class' if per_class else ''}")
    initial = start.vectors
    if per_class:
        initial = torch.randn(len(classes.names), *initial.shape) * 0.02
    return Context(initial, start.words)


class CoOpMethod(Method):
    """Text features of the prompts around a learned context, images as they are.

    Args:
        context: `Context`.
        position: where the class name stands: "end", "middle" or "front" of the context.
    """

    trained_modules: tuple[str, ...] = ("context",)
    prompt_modules = ("context",)
    sees: tuple[str, ...] = ("other_data_sets",)
    # The words it starts from where none are given.
    own_words = ""

    def __init__(
        self, encoders: Encoders, classes: Classes, context: Context, position: str = "end"
    ) -> None:
        super().__init__(encoders, classes)
        self.context = context
        if context.ctx.dim() == 3:
            self.class_bound = ("context.ctx",)
            if classes.further:
                raise UserError("TRAINER.COOP.CSC is for one data set: empty DATASET.FURTHER")
        self.words = context.words
        self.layout = encoders.text.layout(
            classes.names, context.ctx.shape[-2], position, context.words
        )
        self.further = nn.ModuleList(
            encoders.text.layout(own.names, context.ctx.shape[-2], position, context.words)
            for own in classes.further
        )

    @classmethod
    def starting_words(cls, c: CfgNode) -> str:
        """The words to start from; "" for none."""
        return cls.own_words if c.CTX_INIT == "" else c.CTX_INIT or ""

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """CTX_INIT and N_CTX become what the method makes of them."""
        c = cfg.TRAINER.COOP
        # None where "" would mean its own words.
        c.CTX_INIT = cls.starting_words(c) or (None if cls.own_words else "")
        resolve_words(c)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> CoOpMethod:
        """From N_CTX, CSC, CTX_INIT and CLASS_TOKEN_POSITION.

        Raises:
            UserError: an unknown position, or prompts longer than the tower takes.
        """
        c = cfg.TRAINER.COOP
        context = initial_context(c, encoders, classes, cls.starting_words(c))
        return cls(encoders, classes, context, c.CLASS_TOKEN_POSITION)

    def features(self, image: torch.Tensor, **known: torch.Tensor) -> Features:
        """As the contract's; of a further data set's batch its classes' text features."""
        dataset = int(known.get("dataset", 0))
        if not dataset:
            return super().features(image, **known)
        layout = self.further[dataset - 1]
        return Features(self.encode_image(image), self.encoders.text(layout, self.context.ctx))

    def encode_text(self) -> torch.Tensor:
        """(C,D): of the prompts [SOS][V][class name][.][EOT]."""
        return self.encoders.text(self.layout, self.context.ctx)


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context Optimization."""

    method_class = CoOpMethod
    config_node = "COOP"

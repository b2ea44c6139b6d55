"""KgCoOp: Knowledge-guided Context Optimization (Yao et al., CVPR 2023, arXiv 2303.13283).

CoOp whose text features stay near those of the hand-written prompt:
L = L_ITM + w · (1 − mean_c cos(ê_c, ẽ_c)), ẽ the frozen features of the data set's template, or
with DATASET.SENTENCES of each class's own sentences.
"""

from __future__ import annotations

import torch

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, public, real
from dassl.engine import TRAINER_REGISTRY
from tuning.method import Classes, Features, unit
from tuning.prompts import WORDS
from tuning.sentences import mean_of_sentences
from tuning.trainer import PromptTrainer

from .coop import Context, CoOpMethod, initial_context


def extend_cfg(cfg: CfgNode) -> None:
    """Declare w as TRAINER.COOP.W, and what public configs set that nothing reads."""
    # The other keys are CoOp's; without CTX_INIT the context starts from "a photo of a".
    cfg.TRAINER.COOP.W = 8.0  # w; 2 in the DePT paper's runs
    public(cfg, "TRAINER.COOP.ALPHA", None, "KgCoOp's code never reads it either")
    for key in ("GM", "NAME", "ALPHA", "T", "LAMBDA"):
        public(cfg, f"LOSS.{key}", None, "only the trainer ProGrad reads it, which isn't here")
    declare_checks({"TRAINER.COOP.W": real(0)})


class KgCoOpMethod(CoOpMethod):
    """CoOp with a "kg" loss.

    Args:
        frozen_text: (C,D) features of the hand-written prompts or sentences.
        weight: w.
    """

    own_words = WORDS
    sees = ()  # its frozen text is one data set's
    sentences_for = "training"
    frozen_text: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        context: Context,
        frozen_text: torch.Tensor,
        weight: float,
        position: str = "end",
    ) -> None:
        super().__init__(encoders, classes, context, position)
        self.register_buffer("frozen_text", unit(frozen_text), persistent=False)
        self.weight = weight

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> KgCoOpMethod:
        """From CoOp's keys and W. Raises as CoOp's.

        ẽ is of the data set's template, or the mean of a class's own sentences, normalized each.
        """
        c = cfg.TRAINER.COOP
        context = initial_context(c, encoders, classes, cls.starting_words(c))
        frozen = mean_of_sentences(encoders, classes)
        if frozen is None:
            frozen = encoders.text.encode(classes.sentences())
        return cls(encoders, classes, context, frozen, c.W, c.CLASS_TOKEN_POSITION)

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """L_ITM as "itm", and w · (1 − mean_c cos(ê_c, ẽ_c)) as "kg"; label (B,)."""
        cosine = (unit(features.text) * self.frozen_text).sum(dim=-1)
        return {**super().losses(features, label), "kg": self.weight * (1 - cosine.mean())}


@TRAINER_REGISTRY.register()
class KgCoOp(PromptTrainer):
    """Knowledge-guided Context Optimization."""

    method_class = KgCoOpMethod
    config_node = "COOP"

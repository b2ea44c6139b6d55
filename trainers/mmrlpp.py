"""MMRL++: parameter-efficient, interaction-aware MMRL (Guo and Gu, IJCV 2026, arXiv 2505.10088).

MMRL (mmrl.py) with fewer parameters, and with tokens that remember:

    A_j = W + a_j b_j    one W of a tower, a_j (d_t|d_v,4) and b_j (4,d) of each layer; own biases
    P_r = P + a b        P the frozen projection of the class token, a (d_v,64), b (64,D)

and before each layer but the first the tokens are β times those of the layer's own map plus 1−β
times what the layer below has made of the last ones, in the residual streams of both towers.
a_j, a start as LoRA's A, Kaiming-uniform, b_j, b as zeros. Loss and test as MMRL's.

One setting for all data sets, λ 1 and β .9, is the default. What the public code does otherwise:
it takes λ and β by the data set's name (configs/trainers/MMRLpp/vit_b16_published*), and in its
transfers β by the name of the data set that is tested; here a test takes the run's own β, unless
TRAINER.MMRLpp.BETA is given with it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from dassl.config import CfgNode, declare_checks, whole
from dassl.engine import TRAINER_REGISTRY
from tuning.trainer import PromptTrainer

from .mmrl import SHARE, MMRLMethod, Representation, declare


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.MMRLpp."""
    node = declare(cfg, "MMRLpp")
    node.BETA = 0.9  # β
    node.RES_LORA_DIM = 4  # rank of a_j b_j
    node.PROJ_LORA_DIM = 64  # rank of a b
    keys = ("RES_LORA_DIM", "PROJ_LORA_DIM")
    declare_checks({f"TRAINER.MMRLpp.{key}": whole(1) for key in keys})
    declare_checks({"TRAINER.MMRLpp.BETA": SHARE})


def _low_rank(rows: int, rank: int, columns: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (rows,rank), as LoRA's starts, and B (rank,columns), zeros."""
    a = nn.Parameter(torch.empty(rows, rank))
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    return a, nn.Parameter(torch.zeros(rank, columns))


class Residual(nn.Module):
    """a_j b_j and the bias of one layer."""

    def __init__(self, shared: nn.Linear, rank: int) -> None:
        super().__init__()
        self.A, self.B = _low_rank(shared.out_features, rank, shared.in_features)
        self.bias = nn.Parameter(shared.bias.detach().clone())

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x: (n,d) → (n,W); weight: the shared one."""
        return F.linear(x, weight + self.A @ self.B, self.bias)


class Aligner(nn.Module):
    """The maps of all layers of a tower: W, and what each layer adds to it."""

    def __init__(self, dim: int, width: int, layers: int, rank: int) -> None:
        super().__init__()
        shared = nn.Linear(dim, width)
        self.weight = nn.Parameter(shared.weight.detach().clone())
        self.srra = nn.ModuleList(Residual(shared, rank) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x: (n,d) → (n,W) of each layer."""
        return [residual(x, self.weight) for residual in self.srra]


class SharedRepresentation(Representation):
    """R, W, a_j b_j, biases and a b, under the public code's names.

    Args:
        tokens, dim, layers, widths, embed_dim: as `Representation`'s.
        rank: of a_j b_j.
        projection_rank: of a b.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        layers: int,
        widths: tuple[int, int],
        embed_dim: int,
        rank: int = 4,
        projection_rank: int = 64,
    ) -> None:
        nn.Module.__init__(self)
        self.compound_rep_tokens = nn.Parameter(torch.randn(tokens, dim) * 0.02)
        self.srra_r2tproj, self.srra_r2vproj = (Aligner(dim, w, layers, rank) for w in widths)
        self.A, self.B = _low_rank(widths[1], projection_rank, embed_dim)

    def text(self) -> list[torch.Tensor]:
        """The tokens (n,d_t) of each layer."""
        return self.srra_r2tproj(self.compound_rep_tokens)

    def image(self) -> list[torch.Tensor]:
        """The tokens (n,d_v) of each layer."""
        return self.srra_r2vproj(self.compound_rep_tokens)

    def projection(self, frozen: torch.Tensor) -> torch.Tensor:
        """P_r (d_v,D); frozen: P."""
        return frozen.to(self.A.dtype) + self.A @ self.B


class MMRLppMethod(MMRLMethod):
    """MMRL with shared maps, and tokens that keep a share 1−β of what they were."""

    node = "MMRLpp"

    @staticmethod
    def learner_of(c: CfgNode, widths: tuple[int, int], embed_dim: int) -> Representation:
        """What is trained."""
        sizes = (c.N_REP_TOKENS, c.REP_DIM, len(c.REP_LAYERS), widths, embed_dim)
        return SharedRepresentation(*sizes, c.RES_LORA_DIM, c.PROJ_LORA_DIM)

    @staticmethod
    def kept(c: CfgNode) -> float:
        """1−β."""
        return 1 - c.BETA


@TRAINER_REGISTRY.register()
class MMRLpp(PromptTrainer):
    """MMRL++."""

    method_class = MMRLppMethod
    config_node = "MMRLpp"
    model_name = "MultiModalRepresentationLearner"

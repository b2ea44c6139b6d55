"""PRE: prompt learning with a reparameterization encoder (Minh et al., arXiv 2309.07760).

CoOp whose context comes out of a small network: V = V₀ + R(V₀) with V₀ ∈ R^{M×d_t} and R a
bidirectional LSTM over the M tokens, d_t/2 wide in each direction. V₀ and R are trained by cross
entropy; at test V is computed once. R starts as torch's LSTM does, so V isn't V₀ at the start: with
R = 0 the first loss would be that of "a photo of a {}.".

The public code trains in its "amp" branch alone (the other reads names that don't exist). With
SEPARATE, its default there, the networks stand in a plain dictionary: they are neither optimized
nor saved; here they are. One token (M = 1) breaks its LSTM, but not this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, public, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_choice
from tuning.claims import Claim, Row
from tuning.method import Classes, Method
from tuning.prompts import WORDS, public_words, resolve_words, starting_context
from tuning.trainer import PromptTrainer

from .coop import FROM_WORDS, SIXTEEN_VECTORS

# Layers of the LSTM, or how often the MLP is applied (with the same weights).
_LSTMS = {"LSTM1": 1, "LSTM2": 2}
_MLPS = {"MLP1": 1, "MLP2": 2}
_HIDDEN = 64  # of the MLP
_DROPOUT = 0.05  # between the layers of LSTM2


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.PRE and the ranges of its values."""
    cfg.TRAINER.PRE = CfgNode()
    cfg.TRAINER.PRE.N_CTX = 4  # M
    cfg.TRAINER.PRE.CTX_INIT = WORDS  # words to start from; they set M
    cfg.TRAINER.PRE.CLASS_TOKEN_POSITION = "end"  # end, middle, front
    cfg.TRAINER.PRE.ENCODER = "LSTM1"  # R: LSTM1, LSTM2, MLP1, MLP2
    cfg.TRAINER.PRE.RESIDUAL = True  # False: V = R(V₀)
    cfg.TRAINER.PRE.SEPARATE = False  # a network for each token
    cfg.TRAINER.PRE.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.PRE.CTX_INIT")
    why = "one context serves all classes, as in its runs"
    public(cfg, "TRAINER.PRE.CSC", None, why, values=_no_context_per_class)
    declare_checks({"TRAINER.PRE.N_CTX": whole(1)})


def _no_context_per_class(csc: bool) -> bool:
    if csc:
        raise ValueError("PRE has one context for all classes here")
    return csc


class TokenLSTM(nn.Module):
    """A bidirectional LSTM over tokens (M,width) → (M,width): torch.nn.LSTM's names and numbers.

    Written out: torch's own can't be mapped over runs side by side. Starts as torch's, uniform
    within ±1/√(width/2).
    """

    def __init__(self, width: int, layers: int = 1) -> None:
        super().__init__()
        self.layers = layers
        hidden = width // 2
        for layer in range(layers):
            for end in ("", "_reverse"):
                for name, *rest in (
                    *(("weight_ih", width), ("weight_hh", hidden)),
                    *(("bias_ih",), ("bias_hh",)),
                ):
                    value = torch.empty(4 * hidden, *rest).uniform_(-(hidden**-0.5), hidden**-0.5)
                    self.register_parameter(f"{name}_l{layer}{end}", nn.Parameter(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (M,width) → (M,width), both directions side by side in each layer."""
        for layer in range(self.layers):
            if layer and self.training:
                x = F.dropout(x, _DROPOUT)
            backward = self._direction(x.flip(0), f"l{layer}_reverse").flip(0)
            x = torch.cat([self._direction(x, f"l{layer}"), backward], dim=-1)
        return x

    def _direction(self, x: torch.Tensor, which: str) -> torch.Tensor:
        weight_ih, weight_hh, bias_ih, bias_hh = (
            getattr(self, f"{name}_{which}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        given = F.linear(x, weight_ih, bias_ih + bias_hh)
        hidden = cell = torch.zeros_like(given[0, : weight_hh.shape[1]])
        outputs = []
        for token in given:
            let_in, keep, new, let_out = (token + weight_hh @ hidden).chunk(4)
            cell = keep.sigmoid() * cell + let_in.sigmoid() * new.tanh()
            hidden = let_out.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs)


class TokenEncoder(nn.Module):
    """V₀ (M,d_t) → V₀ + R(V₀), or R(V₀) without `residual`."""

    def __init__(self, kind: str, width: int, residual: bool = True) -> None:
        super().__init__()
        check_choice("TRAINER.PRE.ENCODER", kind, (*_LSTMS, *_MLPS))
        self.residual = residual
        self.times = _MLPS.get(kind, 1)
        if kind in _LSTMS:
            self.lstm_head = TokenLSTM(width, _LSTMS[kind])
        else:
            layers = nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, width)
            self.module = nn.Sequential(*layers)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (M,d_t) → (M,d_t); MLP2 applies one MLP twice."""
        x = tokens
        for _ in range(self.times):
            x = self.lstm_head(x) if hasattr(self, "lstm_head") else self.module(x)
        return tokens + x if self.residual else x


class ReparameterizedContext(nn.Module):
    """ctx: V₀ (M,d_t); called, it gives V (M,d_t).

    encoder_network: one `TokenEncoder`, or M of them, each for a token.
    words: token ids of the frozen words after the context.
    """

    def __init__(
        self,
        initial: torch.Tensor,
        encoder: TokenEncoder | nn.ModuleList,
        words: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.ctx = nn.Parameter(initial)
        self.encoder_network = encoder
        self.words = words

    def forward(self) -> torch.Tensor:
        """→ V (M,d_t)."""
        if isinstance(self.encoder_network, TokenEncoder):
            return self.encoder_network(self.ctx)
        each = zip(self.encoder_network, self.ctx.split(1), strict=True)
        return torch.cat([encoder(token) for encoder, token in each])


class PREMethod(Method):
    """Text features of the prompts around V, images as they are.

    Args:
        context: V₀ and R.
        position: where the class name stands: "end", "middle" or "front" of the context.
    """

    trained_modules = ("context",)

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        context: ReparameterizedContext,
        position: str = "end",
    ) -> None:
        super().__init__(encoders, classes)
        self.context = context
        self.words = context.words
        self.layout = encoders.text.layout(classes.names, len(context.ctx), position, self.words)

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """N_CTX becomes what CTX_INIT sets."""
        resolve_words(cfg.TRAINER.PRE)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> PREMethod:
        """From all keys of TRAINER.PRE.

        Raises:
            UserError: an unknown encoder or position, or prompts longer than the tower takes.
        """
        c = cfg.TRAINER.PRE
        start = starting_context(encoders, c.CTX_INIT, c.N_CTX)
        print(f"Initial context: {start.shown}")

        def encoder() -> TokenEncoder:
            return TokenEncoder(c.ENCODER, encoders.text.width, c.RESIDUAL)

        each = (encoder() for _ in start.vectors)
        encoder = nn.ModuleList(each) if c.SEPARATE else encoder()
        context = ReparameterizedContext(start.vectors, encoder, start.words)
        return cls(encoders, classes, context, c.CLASS_TOKEN_POSITION)

    def encode_text(self) -> torch.Tensor:
        """(C,D): of the prompts [SOS][V][class name][.][EOT]."""
        return self.encoders.text(self.layout, self.context())


@TRAINER_REGISTRY.register()
class PRE(PromptTrainer):
    """Prompt learning with a reparameterization encoder."""

    method_class = PREMethod
    config_node = "PRE"
    claim = Claim(
        "an encoder of the context keeps more of the new classes than CoOp",
        (Row("PRE", "PRE"),),
        (FROM_WORDS, SIXTEEN_VECTORS),
    )

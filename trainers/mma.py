"""MMA: Multi-Modal Adapter (Yang et al., CVPR 2024; public code ZjjConan/VLM-MultiModalAdapter).

A bottleneck beside each of the upper blocks of both towers, whose middle the two towers share. With
x the input of block j, for j from START to END, counted from 1:

    block_j(x) = (x + attn(LN₁ x)) + mlp(LN₂ ·) + s · U_j S_j D_j LN₁ x
    D_j = ReLU(Linear(W, r)), U_j = Linear(r, W) of each tower,   S_j = ReLU(Linear(r, r)) of both

LN₁ is the block's own, frozen; j is 5 … 12, r 32, s .001. The text is "a photo of a {}." for every
data set, the loss cross entropy. Weights start Kaiming-normal, biases 0: at first it is CLIP but
for a term of the size of s.

The gradient is no function's: D, S and U get it as if s were 1, the stream below the true one. So
s sets how much the adapters say and not how fast they learn. That is done in the backward pass
alone, and the learning rate is the config's.

What the public code does otherwise: its defaults are START 4 and s .1, which its runs don't take;
START 0, which none takes either, puts an adapter behind the embeddings and is refused here. Its
text features are kept from the first test on, whatever is trained later.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clip.prompting import Branch, Change, Encoders
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tuning.method import Classes, Method
from tuning.prompts import WORDS
from tuning.trainer import PromptTrainer


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.MMADAPTER, by the public code's names."""
    cfg.TRAINER.MMADAPTER = CfgNode()
    cfg.TRAINER.MMADAPTER.TEXT_CTX_INIT = WORDS  # the words before the class name
    cfg.TRAINER.MMADAPTER.ADAPTER_START = 5  # the first block with adapters, counted from 1
    cfg.TRAINER.MMADAPTER.ADAPTER_END = 12  # the last
    cfg.TRAINER.MMADAPTER.ADAPTER_DIM = 32  # r
    cfg.TRAINER.MMADAPTER.ADAPTER_SCALE = 0.001  # s
    cfg.TRAINER.MMADAPTER.PREC = "fp16"  # fp32, fp16, bf16, amp
    keys = ("ADAPTER_START", "ADAPTER_END", "ADAPTER_DIM")
    declare_checks({f"TRAINER.MMADAPTER.{key}": whole(1) for key in keys})
    declare_checks({"TRAINER.MMADAPTER.ADAPTER_SCALE": real(above=0)})


class _ScaledBelow(torch.autograd.Function):
    """x as it is; its gradient times s."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, s):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.s = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return ctx.s * grad, None


class _Scaled(torch.autograd.Function):
    """s · x; the gradient of x is the product's, as if s were 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, s):
        return s * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Adapter(nn.Module):
    """x (…,W) → s · U S D x of one block in one tower.

    Args:
        own: the tower's "down" D and "up" U.
        shared: S.
        scale: s.
    """

    def __init__(self, own: nn.ModuleDict, shared: nn.Module, scale: float) -> None:
        super().__init__()
        self.down, self.shared, self.up = own["down"], shared, own["up"]
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…,W), the block's LN₁ → (…,W)."""
        y = self.up(self.shared(self.down(_ScaledBelow.apply(x, self.scale))))
        return _Scaled.apply(y, self.scale)


def _rectified(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())


class Adapters(nn.Module):
    """D, U and S of some blocks, by their numbers from 1, under the public code's names.

    Args:
        blocks: their numbers.
        widths: W of the text and of the image tower.
        dim: r.
    """

    def __init__(self, blocks: Sequence[int], widths: tuple[int, int], dim: int = 32) -> None:
        super().__init__()

        def of_tower(width: int) -> nn.ModuleDict:
            own = {"down": lambda: _rectified(width, dim), "up": lambda: nn.Linear(dim, width)}
            parts = {str(j): {name: make() for name, make in own.items()} for j in blocks}
            return nn.ModuleDict({j: nn.ModuleDict(part) for j, part in parts.items()})

        self.text_adapter, self.visual_adapter = map(of_tower, widths)
        self.shared_adapter = nn.ModuleDict({str(j): _rectified(dim, dim) for j in blocks})
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def beside(self, tower: nn.ModuleDict, scale: float) -> list[Branch]:
        """A tower's adapters as changes of its blocks."""
        changes = []
        for j, own in tower.items():
            assert isinstance(own, nn.ModuleDict)
            # Made anew for each pass: the parts are what is trained.
            changes.append(Branch(int(j) - 1, Adapter(own, self.shared_adapter[j], scale)))
        return changes


class MMAMethod(Method):
    """Both towers with adapters beside their upper blocks.

    Args:
        adapters: D, U, S.
        words: what stands before the class names.
        scale: s.
    """

    trained_modules = ("adapters",)
    image_tower_untouched = False

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        adapters: Adapters,
        words: str = WORDS,
        scale: float = 0.001,
    ) -> None:
        super().__init__(encoders, classes)
        self.adapters = adapters
        self.scale = scale
        text = encoders.text
        self.layout = text.layout(classes.names, 0, words=text.token_ids(words))

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> MMAMethod:
        """From all keys of TRAINER.MMADAPTER.

        Raises:
            UserError: the image tower is a ResNet, or there are no such blocks in both towers.
        """
        c = cfg.TRAINER.MMADAPTER
        widths = encoders.text.width, encoders.image.width
        layers = min(encoders.text.layers, encoders.image.layers)
        if not c.ADAPTER_START <= c.ADAPTER_END <= layers:
            raise UserError(
                f"TRAINER.MMADAPTER: blocks {c.ADAPTER_START} to {c.ADAPTER_END}; the towers have "
                f"1 to {layers}: set ADAPTER_START and ADAPTER_END among them"
            )
        blocks = range(c.ADAPTER_START, c.ADAPTER_END + 1)
        print(f"Prompt: {c.TEXT_CTX_INIT} {{}}.")
        print(f"Adapters beside blocks {c.ADAPTER_START} to {c.ADAPTER_END} of both towers")
        adapters = Adapters(blocks, widths, c.ADAPTER_DIM)
        return cls(encoders, classes, adapters, c.TEXT_CTX_INIT, c.ADAPTER_SCALE)

    def encode_text(self) -> torch.Tensor:
        """(C,D), with the text tower's adapters."""
        changes = self.adapters.beside(self.adapters.text_adapter, self.scale)
        features = self.text_of(self.layout, changes)
        assert isinstance(features, torch.Tensor)
        return features

    def image_changes(self) -> Sequence[Change]:
        """The image tower's adapters."""
        return self.adapters.beside(self.adapters.visual_adapter, self.scale)


@TRAINER_REGISTRY.register()
class MMA(PromptTrainer):
    """Multi-Modal Adapter."""

    method_class = MMAMethod
    config_node = "MMADAPTER"
    model_name = "adapter_learner"

"""The image tower, fed with prompts. Shape letters: the package's."""

from __future__ import annotations

import torch
from torch import nn

from dassl.utils import UserError

from ..model import CLIP, VisionTransformer
from .block import per_layer, replace, run_block

# Without gradients nothing is kept, and pieces of this many images (at least one for each thread)
# stay within the CPU's caches.
_IMAGES_PER_PIECE = 4


class ImageEncoder(nn.Module):
    """CLIP's image tower, a ViT's fed with prompts; shares the weights of `clip_model`."""

    def __init__(self, clip_model: CLIP, fast: bool = True) -> None:
        super().__init__()
        self.visual = clip_model.visual
        self.fast = fast

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    @property
    def width(self) -> int:
        """Width of the ViT's tokens.

        Raises:
            UserError: the tower is a ResNet, which takes no prompts.
        """
        if not isinstance(self.visual, VisionTransformer):
            raise UserError(
                "this method puts prompts into the image tower, and a ResNet takes none: "
                "set MODEL.BACKBONE.NAME to a ViT"
            )
        return self.visual.conv1.out_channels

    @property
    def layers(self) -> int:
        return len(self.visual.transformer.resblocks)

    def forward(
        self,
        image: torch.Tensor,
        prompts: torch.Tensor | None = None,
        deep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image features, not normalised; without prompts also without gradient.

        Args:
            image: (B,3,H,H).
            prompts: (N,W), appended after the patch tokens, before ln_pre; (K,N,W) for K
                sets, each serving B/K consecutive images.
            deep: (J−1,N,W) or (K,J−1,N,W), replacing the last N tokens before layers 1…J−1.

        Returns:
            (B,D).
        """
        image = image.to(self.dtype)
        if prompts is None and deep is None:
            return self._unprompted(image)
        if prompts is not None:
            prompts = prompts.to(self.dtype)
            prompts = prompts if prompts.dim() == 3 else prompts.unsqueeze(0)
        deep = [] if deep is None else per_layer(deep.to(self.dtype))
        return self._prompted(image, prompts, deep)

    @torch.no_grad()
    def _unprompted(self, image: torch.Tensor) -> torch.Tensor:
        if not (self.fast and isinstance(self.visual, VisionTransformer)):
            return self.visual(image)
        at_once = max(1, len(image))
        if image.device.type == "cpu":
            at_once = max(_IMAGES_PER_PIECE, torch.get_num_threads())
        return torch.cat([self._prompted(part, None, []) for part in image.split(at_once)])

    def _prompted(
        self, image: torch.Tensor, prompts: torch.Tensor | None, deep: list[torch.Tensor]
    ) -> torch.Tensor:
        visual = self.visual
        x = visual.embed(image)
        own = x.shape[1]  # the image's own tokens: class and patches
        if prompts is not None:
            rows = prompts.repeat_interleave(len(x) // len(prompts), dim=0)
            x = torch.cat([x, rows.to(x.dtype)], dim=1)
        x = visual.ln_pre(x)
        blocks = visual.transformer.resblocks
        for i, block in enumerate(blocks):
            x = replace(x, deep, i, own)
            if not self.fast:
                x = block(x.transpose(0, 1)).transpose(0, 1)
                continue
            if i == len(blocks) - 1:
                queries = 1  # only the class token is read
            elif i < len(deep) and x.shape[1] <= own + deep[i].shape[1]:
                queries = own  # the next layer replaces the rest
            else:
                queries = x.shape[1]
            x = run_block(block, x, queries)[0]
        return visual.ln_post(x[:, 0]) @ visual.proj

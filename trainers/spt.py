"""SPT: Self-Prompt Tuning (Wang et al., ICML 2024, arXiv 2402.02382), on CLIP. Adaptation: ours.

VPT whose prompts start from the training images' own tokens. The paper tunes plain ViTs with a
linear head; its code (WangYZ1608/Self-Prompt-Tuning) was read. No result on CLIP was published.
With x_ij ∈ R^{d_v} patch token i of an image before layer j of the unprompted tower,

    bank_j              x_ij of all patches of up to 2,048 training images
    prompts of layer j  (N,d_v): N different ones of bank_j, each as likely, drawn for each layer

by the run's seed. Everything else is VPT's, its options under TRAINER.VPT included: N prompts per
layer at the sequence's end, replaced at each of J layers, frozen text, cross entropy. So is the
first loss, with those prompts. Its control is VPT on the same schedule.

What the released code does otherwise:
- It sees an image as in training, and draws images with replacement, as many as there are. Here an
  image is seen as in a test, once.
- Its tokens before layer 0 have no position. Here prompts are put in before ln_pre, where patches
  have theirs.
- It may also draw among means or maxima of windows. One of its two scripts names k-means and has no
  code for it. By the paper plain tokens do as well.
- It keeps the epoch that is best on its evaluation images. Here the last one counts.
"""

from __future__ import annotations

import torch

from clip.prompting import Encoders, Read
from dassl.config import CfgNode, declare_checks, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from tuning.claims import Claim, Row
from tuning.method import Classes
from tuning.prompts import VisionPrompts
from tuning.trainer import PromptTrainer
from tuning.training_data import TrainingData

from .vpt import VPTMethod

INITS = ("tokens", "normal")


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.SPT; the other keys are VPT's."""
    cfg.TRAINER.SPT = CfgNode()
    cfg.TRAINER.SPT.INIT = "tokens"  # tokens | normal: N(0, .02²), as VPT starts
    cfg.TRAINER.SPT.IMAGES = 2048  # so many training images at most, chosen at random
    declare_checks({"TRAINER.SPT.IMAGES": whole(1)})


class SPTMethod(VPTMethod):
    """VPT that starts from what `prepare` sees.

    init and most_images are what the config's INIT and IMAGES say.
    """

    init = "tokens"
    most_images = 2048

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> SPTMethod:
        """From TRAINER.SPT, and from VPT's keys as VPT."""
        method = super().from_cfg(cfg, encoders, classes)
        assert isinstance(method, cls)
        c = cfg.TRAINER.SPT
        check_choice("TRAINER.SPT.INIT", c.INIT, INITS)
        method.init, method.most_images = c.INIT, c.IMAGES
        return method

    def prepare(self, data: TrainingData) -> None:
        """Draw every layer's prompts from the tokens before it.

        Raises:
            UserError: there are more prompts than tokens.
        """
        if self.init != "tokens":
            return
        encoder, vision = self.encoders.image, self.prompts["vision"]
        assert isinstance(vision, VisionPrompts)
        prompts = [vision.prompts, *vision.deep]
        n, patches = len(vision.prompts), encoder.tokens - 1
        images = torch.randperm(len(data))[: self.most_images]
        tokens = len(images) * patches
        if n > tokens:
            raise UserError(f"TRAINER.VPT.N_CTX_VISION is {n}; the images have {tokens} tokens")
        print(f"Prompts: {n} tokens per layer of {len(images)} training images, seen as in a test")
        drawn = torch.stack([torch.randperm(tokens)[:n] for _ in prompts])
        image, place = images[drawn // patches], drawn % patches  # (J,N)
        reads = {str(j): Read(j, slice(1, None)) for j in range(len(prompts))}
        first = 0
        for batch in data.images():
            here = (image >= first) & (image < first + len(batch))
            if here.any():
                wanted = image[here].unique()
                seen = encoder(batch[wanted - first], reads=reads)
                for j, prompt in enumerate(prompts):
                    own = here[j]
                    row = torch.searchsorted(wanted, image[j, own])
                    prompt[own] = seen[str(j)][row, place[j, own]].to(prompt.dtype)
            first += len(batch)


@TRAINER_REGISTRY.register()
class SPT(PromptTrainer):
    """Self-Prompt Tuning on CLIP; adaptation: ours."""

    method_class = SPTMethod
    config_node = "VPT"
    claim = Claim(
        "prompts that start from the images' own tokens do better than VPT's",
        (Row("SPT", "SPT"),),
        (Row("VPT", "VPT"),),
    )

    @classmethod
    def config_nodes(cls) -> tuple[str, ...]:
        """VPT's node beside its own."""
        return (*super().config_nodes(), "SPT")

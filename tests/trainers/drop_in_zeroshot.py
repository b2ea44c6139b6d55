"""A third one: zero-shot CLIP by names that such files take from one another."""

import torch
import torch.nn as nn
from clip import clip
from clip.model import convert_weights

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.engine.trainer import MetricMeter, SummaryWriter
from dassl.modeling import build_backbone, build_head
from dassl.optim.lr_scheduler import ConstantWarmupScheduler
from dassl.optim.radam import RAdam
from dassl.utils.tools import mkdir_if_missing

from .coop import load_clip_to_cpu


@TRAINER_REGISTRY.register()
class ElsewhereZeroshot(TrainerX):
    def build_model(self):
        clip_model = load_clip_to_cpu(self.cfg)
        convert_weights(clip_model)
        clip_model.float()
        names = [n.replace("_", " ") for n in self.dm.dataset.classnames]
        for name in names:
            ids = clip._tokenizer.encode(name)
            assert clip._tokenizer.decode(ids).strip() == name
        with torch.no_grad():
            text = clip_model.encode_text(torch.cat([clip.tokenize(f"a {n}.") for n in names]))
        self.clip_model = clip_model
        self.scale = nn.Linear(1, 1, bias=False)
        self.text = text / text.norm(dim=-1, keepdim=True)
        self.optim = RAdam(self.scale.parameters(), lr=0.01)
        after = torch.optim.lr_scheduler.StepLR(self.optim, 1)
        self.sched = ConstantWarmupScheduler(self.optim, after, 1, 1e-5)
        self.register_model("scale", self.scale, self.optim, self.sched)

    def model_inference(self, image):
        image = self.clip_model.encode_image(image)
        image = image / image.norm(dim=-1, keepdim=True)
        logits = self.clip_model.logit_scale.exp() * image @ self.text.t()
        return logits * self.scale.weight.abs()

    def forward_backward(self, batch):
        with torch.no_grad():
            image = self.clip_model.encode_image(batch["img"].to(self.device))
        label = batch["label"].to(self.device)
        logits = image @ self.text.t() * self.scale.weight
        losses = nn.functional.cross_entropy(logits, label), logits.pow(2).mean()
        self.prograd_backward_and_update(*losses, self.cfg.TRAINER.ELSEWHERE.LAMBDA)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": losses[0].item(), "square": losses[1].item()}


def extend_cfg(cfg):
    from yacs.config import CfgNode as CN

    cfg.TRAINER.ELSEWHERE = CN()
    cfg.TRAINER.ELSEWHERE.LAMBDA = 1.0

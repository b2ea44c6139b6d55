"""Another such file: a whole model registered under a name of its own, its own defaults and test."""

import torch
from clip import clip
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param


def extend_cfg(cfg):
    cfg.TRAINER.PROBE = CN()
    cfg.TRAINER.PROBE.PREC = "fp32"
    cfg.TRAINER.PROBE.SCALE = 2.0


class Probe(nn.Module):
    def __init__(self, clip_model, num_classes, scale):
        super().__init__()
        self.encoder = clip_model.visual
        self.fc = nn.Linear(clip_model.visual.output_dim, num_classes)
        self.scale = scale

    def forward(self, image, label=None):
        with torch.no_grad():
            f = self.encoder(image)
        logits = self.fc(f / f.norm(dim=-1, keepdim=True)) * self.scale
        return logits if label is None else nn.functional.cross_entropy(logits, label)


@TRAINER_REGISTRY.register()
class ElsewhereProbe(TrainerX):
    def build_model(self):
        cfg = self.cfg
        clip_model, _ = clip.load(cfg.MODEL.BACKBONE.NAME, device="cpu")
        self.model = Probe(clip_model.float(), self.num_classes, cfg.TRAINER.PROBE.SCALE)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("fc" in name)
        print(f"# params: {count_num_param(self.model):,}")
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.fc, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("Probe", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        loss = self.model(image, label)
        self.model_zero_grad()
        self.model_backward(loss)
        self.model_update()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def parse_batch_train(self, batch):
        image, label, _domain = batch["img"], batch["label"], batch["domain"]
        return image.to(self.device), label.to(self.device)

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" and self.val_loader else self.test_loader
        print(f"Evaluate on the *{split}* set ({self.lab2cname[0]} …)")
        for batch in tqdm(loader):
            image, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(image), label)
        results = self.evaluator.evaluate()
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return list(results.values())[0]

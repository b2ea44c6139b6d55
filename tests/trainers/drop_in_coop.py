"""A trainer in the style of files written for Dassl and OpenAI's clip elsewhere; see the test.

Its prompt is a learned shift of the word embeddings: a method of this test, not of a paper.
"""

import os.path as osp

import torch
import torch.nn as nn
from clip import clip
from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer
from torch.cuda.amp import GradScaler, autocast
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights

_tokenizer = _Tokenizer()


def load_clip_to_cpu(cfg):
    address = clip._MODELS[cfg.MODEL.BACKBONE.NAME]
    file = clip._download(address)
    try:
        archive = torch.jit.load(file, map_location="cpu").eval()
        weights = archive.state_dict()
    except RuntimeError:
        weights = torch.load(file, map_location="cpu")
    return clip.build_model(weights)


class TextTower(nn.Module):
    def __init__(self, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def forward(self, prompts, tokens):
        x = prompts + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x).type(self.dtype)
        last = x[torch.arange(x.shape[0]), tokens.argmax(dim=-1)]
        return last @ self.text_projection


class ShiftLearner(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        names = [n.replace("_", " ") for n in classnames]
        self.name_lens = [len(_tokenizer.encode(n)) for n in names]
        tokens = torch.cat([clip.tokenize(f"a photo of a {n}.") for n in names])
        with torch.no_grad():
            words = clip_model.token_embedding(tokens).type(clip_model.dtype)
        assert clip_model.visual.input_resolution == cfg.INPUT.SIZE[0]
        self.shift = nn.Parameter(torch.zeros(clip_model.ln_final.weight.shape[0]))
        self.register_buffer("token_prefix", words[:, :1])
        self.register_buffer("token_suffix", words[:, 1:])
        self.tokens = tokens

    def forward(self):
        return torch.cat([self.token_prefix, self.token_suffix + self.shift], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        self.prompt_learner = ShiftLearner(cfg, classnames, clip_model)
        self.image_encoder = clip_model.visual
        self.text_encoder = TextTower(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def forward(self, image):
        f = F.normalize(self.image_encoder(image.type(self.dtype)), dim=-1)
        e = self.text_encoder(self.prompt_learner(), self.prompt_learner.tokens)
        return self.logit_scale.exp() * f @ F.normalize(e, dim=-1).t()


@TRAINER_REGISTRY.register()
class ElsewhereCoOp(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.COOP.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        names = self.dm.dataset.classnames
        clip_model = load_clip_to_cpu(cfg)
        if cfg.TRAINER.COOP.PREC in ("fp32", "amp"):
            clip_model.float()
        self.model = CustomCLIP(cfg, names, clip_model)
        for name, parameter in self.model.named_parameters():
            if "prompt_learner" not in name:
                parameter.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.scaler = GradScaler() if cfg.TRAINER.COOP.PREC == "amp" else None
        if torch.cuda.device_count() > 1:
            self.model = nn.DataParallel(self.model)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        if self.cfg.TRAINER.COOP.PREC == "amp":
            with autocast():
                loss = F.cross_entropy(self.model(image), label)
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            output = self.model(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
        summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return summary

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            print("No pretrained model given")
            return
        file = "model-best.pth.tar" if epoch is None else "model.pth.tar-" + str(epoch)
        for name in self.get_model_names():
            path = osp.join(directory, name, file)
            if not osp.exists(path):
                raise FileNotFoundError(path)
            checkpoint = load_checkpoint(path)
            weights = checkpoint["state_dict"]
            for bound in ("token_prefix", "token_suffix"):
                if bound in weights:
                    del weights[bound]
            print("Loading {} (epoch {})".format(name, checkpoint["epoch"]))
            self._models[name].load_state_dict(weights, strict=False)

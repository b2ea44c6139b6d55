"""What is timed: one method on one path, without a data set and without released weights.

Shape letters: tuning/method.py's.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import trainers
from clip.model import CLIP, convert_weights
from clip.open_clip_parts import load_part
from clip.prompting import Encoders
from dassl.config import CfgNode, get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_optimizer
from dassl.utils import UserError, set_random_seed
from tuning.inputs import VIEWS_AT_ONCE
from tuning.loading import resolve_precision
from tuning.method import Classes, Features, Method
from tuning.naming import bare_name, is_wrapped
from tuning.step import training_step

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "trainers"

# The released ViTs, and one for tests of the benchmark itself.
SIZES = {
    "ViT-B/16": {
        "embed_dim": 512,
        "image_resolution": 224,
        "vision_layers": 12,
        "vision_width": 768,
        "vision_patch_size": 16,
        "transformer_width": 512,
    },
    "ViT-B/32": {
        "embed_dim": 512,
        "image_resolution": 224,
        "vision_layers": 12,
        "vision_width": 768,
        "vision_patch_size": 32,
        "transformer_width": 512,
    },
    "ViT-L/14": {
        "embed_dim": 768,
        "image_resolution": 224,
        "vision_layers": 24,
        "vision_width": 1024,
        "vision_patch_size": 14,
        "transformer_width": 768,
    },
    "tiny": {
        "embed_dim": 32,
        "image_resolution": 48,
        "vision_layers": 12,
        "vision_width": 64,
        "vision_patch_size": 16,
        "transformer_width": 64,
    },
}


def method_names() -> list[str]:
    """All registered trainers, each followed by DePT around it.

    But for those that need files of a user's, or another run, to be trained at all.
    """
    trainers.modules()
    names = [name for name in TRAINER_REGISTRY.registered_names() if _trains_alone(name)]
    return sorted(names, key=lambda name: (bare_name(name), is_wrapped(name)))


def _trains_alone(name: str) -> bool:
    method = getattr(TRAINER_REGISTRY.get(name), "method_class", Method)
    return not (method.needs_files or method.teacher_key)


def classes_of(number: int) -> Classes:
    """The first ImageNet class names: real names, of real lengths."""
    names = load_part("zero_shot_metadata").IMAGENET_CLASSNAMES
    if not 1 <= number <= len(names):
        raise UserError(f"{number} classes were asked for; there are names for 1 to {len(names)}")
    return Classes(list(names[:number]), [str(c) for c in range(number)])


@dataclass(frozen=True)
class Settings:
    """What is measured. batch: None for what the method's configuration says."""

    trainer: str
    backbone: str = "ViT-B/16"
    classes: int = 100
    batch: int | None = None
    precision: str = "fp32"
    options: tuple[str, ...] = ()

    def cfg(self) -> CfgNode:
        """The method's usual configuration, with the options."""
        cfg = get_cfg_default()
        trainers.extend_cfg(cfg)
        usual = getattr(TRAINER_REGISTRY.get(self.trainer), "usual_config", "")
        file = CONFIGS / self.trainer / f"{usual}.yaml"
        if file.is_file():
            cfg.merge_from_file(file)
        cfg.merge_from_list(list(self.options))
        return cfg

    def model(self) -> CLIP:
        """A CLIP with random weights in the shapes of a released one, its towers in `precision`."""
        sizes = SIZES[self.backbone]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CLIP(
                **sizes,
                context_length=77,
                vocab_size=49408,
                transformer_heads=sizes["transformer_width"] // 64,
                transformer_layers=12,
            )
        # The released temperature: differences of logits are differences at τ = 100.
        torch.nn.init.constant_(model.logit_scale, math.log(100))
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)
        if dtype is not None:
            convert_weights(model, dtype)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(device).eval()


class MethodSetup:
    """One method on one path ("fast" or "plain"): its step, its views' encoding, its evaluation."""

    def __init__(self, settings: Settings, model: CLIP, fast: bool) -> None:
        self.model = model
        self.fast = fast
        self.device = model.logit_scale.device
        self.precision = resolve_precision(settings.precision, self.device, "--precision")
        cfg = settings.cfg()
        self.batch = settings.batch or cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        set_random_seed(1)  # both paths start from the same parameters
        encoders = Encoders(model, fast=True)  # frozen text features take long on the plain path
        with contextlib.redirect_stdout(io.StringIO()):
            method = TRAINER_REGISTRY.get(settings.trainer).build_method(
                cfg, encoders, classes_of(settings.classes)
            )
        encoders.text.fast = encoders.image.fast = fast
        self.method = method.to(self.device).freeze()
        self.trains = bool(self.method.trained())
        if self.trains:
            groups = self.method.param_groups(cfg.OPTIM.LR)
            self.optim = build_optimizer(self.method, cfg.OPTIM, groups)
        self.generator = torch.Generator(self.device).manual_seed(1)  # both paths draw the same
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=2.0**10, enabled=self.precision in ("fp16", "amp")
        )

    @property
    def features_for_images(self) -> bool:
        """Whether it takes image features in place of images."""
        return self.fast and self.method.image_layer() is None

    @property
    def features_with_images(self) -> bool:
        """Whether its training takes the unprompted tower's features with the images."""
        return self.fast and self.method.compares_with_frozen_image

    def ahead(self, image: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What a training step takes for these views: in place of them, and beside them."""
        if self.features_for_images:
            return self.encode(image), {}
        known = {"frozen_image": self.encode(image)} if self.features_with_images else {}
        if self.method.views_wanted > 1:
            known["other_views"] = image.expand(self.method.views_wanted - 1, *image.shape)
        return image, known

    @property
    def views_at_once(self) -> int:
        """The views of one pass of the image tower ahead of the steps."""
        return VIEWS_AT_ONCE[self.device.type == "cuda"]

    @property
    def text_per_image(self) -> bool:
        """Whether every image has text features of its own."""
        if self.method.image_layer() is not None:
            return False
        one = torch.randn(1, self.method.encoders.embed_dim, device=self.device)
        with torch.no_grad(), self.autocast():
            return self.method.eval().features(one).text.dim() == 3

    def autocast(self) -> torch.autocast:
        """What features are computed under: fp16 with the precision amp, else as they are."""
        return torch.autocast(
            self.device.type, dtype=torch.float16, enabled=self.precision == "amp"
        )

    def step(
        self, image: torch.Tensor, label: torch.Tensor, known: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """One training step on what `ahead` gives; returns the loss."""
        self.method.train()
        drawn = self.method.drawn(self.generator, 1.0)
        batch = self.joined({"image": image, "label": label, **known}) | drawn
        return training_step(self.method, batch, self.optim, self.scaler, self.autocast)["loss"]

    @torch.no_grad()
    def joined(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch with as many images more as the method asks for, which stand for its own."""
        if not self.method.asks_for_images():
            return batch
        places = [[c] for c in range(len(self.method.classes.keys))]
        with self.autocast():
            asked = self.method.further_images(
                batch["image"], batch["label"], places, self.generator
            )
        rows = [i % len(batch["label"]) for i in range(len(asked))]
        joined = {name: torch.cat([value, value[rows]]) for name, value in batch.items()}
        joined["label"][len(batch["label"]) :] = torch.tensor(asked, device=self.device)
        return joined

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Views of an untouched image tower, ahead of the steps: (B,3,I,I) → (B,D)."""
        with self.autocast():
            return self.method.encoders.image(image)

    @torch.no_grad()
    def encode_tested(self, image: torch.Tensor) -> torch.Tensor:
        """Test images, as the method encodes them: (B,3,I,I) → (B,D)."""
        with self.autocast():
            return self.method.eval().encode_image(image)

    @torch.no_grad()
    def encoded(self, rows: int) -> torch.Tensor | Features:
        """What `score` takes, of so many random images."""
        if not self.method.image_reads():
            return torch.randn(rows, self.method.encoders.embed_dim, device=self.device)
        with self.autocast():  # it reads more of the tower than a feature
            return self.method.eval().features(images(rows, self.model))

    @torch.no_grad()
    def score(self, image: torch.Tensor | Features, fresh: bool) -> torch.Tensor:
        """Logits of a test batch whose image features (B,D), or what else is read, are known.

        fresh: the text features of an earlier batch are not at hand.
        """
        method = self.method.eval()
        if fresh:
            method.forget_text()
        with self.autocast():
            if isinstance(image, Features):
                features = replace(image, text=method.text_features())
            elif method.image_layer() is None:
                features = method.features(image)
            else:
                features = Features(image=image, text=method.text_features())
        return method.logits(features)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[torch.Tensor]) -> torch.Tensor:
        """Logits (images,C) of batches of images."""
        method = self.method.eval()
        logits = []
        for batch in batches:
            with self.autocast():
                features = method.features(batch)
            logits.append(method.logits(features))
        return torch.cat(logits)


def images(number: int, model: CLIP, seed: int = 0) -> torch.Tensor:
    """Random (number,3,I,I) images on the model's device."""
    generator = torch.Generator().manual_seed(seed)
    side = model.visual.input_resolution
    return torch.randn(number, 3, side, side, generator=generator).to(model.logit_scale.device)

"""Zero-shot CLIP (Radford et al. 2021, arXiv 2103.00020): hand-written prompts, nothing trained."""

from __future__ import annotations

from pathlib import Path

import torch

from clip.open_clip_parts import selected_imagenet_templates
from clip.prompting import Encoders
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tuning.method import Classes, Method, unit
from tuning.sentences import mean_of_sentences
from tuning.trainer import PromptTrainer


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.ZEROSHOT."""
    cfg.TRAINER.ZEROSHOT = CfgNode()
    # A file with a template in one line, such as RLPrompt's prompt.txt: for DATASET.TEMPLATE.
    cfg.TRAINER.ZEROSHOT.TEMPLATE_FILE = ""
    cfg.TRAINER.ZEROSHOT.PREC = "fp16"  # fp32, fp16, bf16, amp


class ZeroshotMethod(Method):
    """The ITM head on frozen text features of hand-written templates, or of sentences.

    Args:
        templates: each with one {}; of several, the normalized features are averaged. As are those
            of a class's own sentences, which stand in their place (DATASET.SENTENCES).
    """

    sentences_for = "features"
    template_name = "zeroshot"
    label_fit = ()  # nothing is trained

    def __init__(self, encoders: Encoders, classes: Classes, templates: list[str]) -> None:
        super().__init__(encoders, classes)
        self.templates = templates

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """TEMPLATE_FILE becomes DATASET.TEMPLATE, so that the run has the text itself.

        Raises:
            UserError: no such file, no template in it, or another one in DATASET.TEMPLATE.
        """
        path, given = cfg.TRAINER.ZEROSHOT.TEMPLATE_FILE, cfg.DATASET.TEMPLATE
        if not path:
            return
        template = read_template(path)
        if given not in ("", template):
            raise UserError(f"DATASET.TEMPLATE is {given!r}, {path} says {template!r}: give one")
        cfg.DATASET.TEMPLATE, cfg.TRAINER.ZEROSHOT.TEMPLATE_FILE = template, ""

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> ZeroshotMethod:
        """With the data set's template ("zeroshot" where it has one)."""
        if not classes.described:
            print(f"Prompt: {classes.template}")
        return cls(encoders, classes, [classes.template])

    def encode_text(self) -> torch.Tensor:
        """(C,D), of all sentences or templates."""
        described = mean_of_sentences(self.encoders, self.classes)
        if described is not None:
            return described
        return ensemble_features(self.encoders, self.classes, self.templates)


class EnsembleMethod(ZeroshotMethod):
    """Seven templates that OpenAI selected on ImageNet, and elsewhere the data set's own."""

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> EnsembleMethod:
        """With the seven, and the data set's where it joins ensembles."""
        templates = selected_imagenet_templates()
        if classes.template_joins_ensembles:
            templates.append(classes.template)
        if not classes.described:
            print(f"Ensemble of {len(templates)} prompts")
        return cls(encoders, classes, templates)


def read_template(path: str) -> str:
    """The one line of a file, with one {}. Raises UserError if that isn't in it."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"TRAINER.ZEROSHOT.TEMPLATE_FILE: can't read {path}: {error}") from error
    if len(lines) != 1 or lines[0].count("{}") != 1:
        raise UserError(f"TRAINER.ZEROSHOT.TEMPLATE_FILE: {path} isn't one line with one {{}}")
    return lines[0]


def ensemble_features(encoders: Encoders, classes: Classes, templates: list[str]) -> torch.Tensor:
    """(C,D): the mean over templates of normalized text features (one template: its features)."""
    features = [encoders.text.encode(classes.sentences(template)) for template in templates]
    if len(features) == 1:
        return features[0]
    return torch.stack([unit(f) for f in features]).mean(dim=0)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """Zero-shot CLIP with the data set's hand-written template."""

    method_class = ZeroshotMethod
    config_node = "ZEROSHOT"
    usual_config = "vit_b16"
    trains = False


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(PromptTrainer):
    """Zero-shot CLIP with an ensemble of templates."""

    method_class = EnsembleMethod
    config_node = "ZEROSHOT"
    usual_config = "vit_b16"
    trains = False

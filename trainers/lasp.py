"""LASP: Language-Aware Soft Prompting (Bulat and Tzimiropoulos, CVPR 2023, arXiv 2210.01115).

CoOp whose learned class features must be recognized, among the classes, by hand-written ones:

    L = CE(τ f̂ êᵀ, y) + α L_tt,   L_tt = mean over p and c of −log softmax_i(τ ê_i · h_pc)[i = c]

with h_pc (D) the normalized frozen feature of class c's name in template p of n. A learned
correction w ∈ R^D is added to every class feature, e ← e + w, and the LayerNorms of the image
blocks are trained at a tenth of the rate. With probability ½ a step's h are noisy: N(0, .05²) is
added, and they aren't normalized again. Gradients are clipped to norm 1 over all that is trained.
It starts as "a photo of a {}.", w = 0 and the LayerNorms CLIP's.

With DATASET.SENTENCES a class's S_c sentences stand in place of the templates: the mean over p is
one over them, and then all classes count alike. No released code has that: it is ours.

Grouped: K contexts, each with its own templates in L_tt (the p-th is group p mod K's); a class's
score is the mean of its K cosines. No released code has it, so the share of templates is ours.

What the public code does otherwise than the paper's base-to-new protocol, and what is here:
- Its L_tt always sees the names of the new classes too, in the runs called LASP as in LASP-V's.
  NAMES "base" is the default here; "all" is what its published numbers were measured with.
- It clips in its "amp" branch alone, which its runs take. Here CLIP_NORM says so.
- w has d_t numbers, so only d_t = D works; here it has D.
- With INCLUDE_ALL_CLASSES it also tests among all classes; here a run's own are tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Encoders, PromptLayout, Weights
from dassl.config import CfgNode, declare_checks, public, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from tuning.claims import Claim, Row
from tuning.method import Classes, Features, Method, unit
from tuning.prompts import WORDS, public_words, resolve_words, starting_context
from tuning.saved import rows_of
from tuning.sentences import pad_sentences, sentences_of
from tuning.step import clip_gradients
from tuning.trainer import PromptTrainer

from .coop import FROM_WORDS, SIXTEEN_VECTORS

NAMES = ("base", "all")
_FEWER = "TRAINER.LASP.GROUPS is {}, and there are {}: each group needs one"
NORM_LR_MULT = 0.1  # the LayerNorms' learning rate, in the context's
# Five data sets' own, and thirty of OpenAI's for ImageNet; one stands twice, and so counts twice.
TEMPLATES = [
    *("a photo of a {}, a type of flower.", "a photo of a person doing {}."),
    *("a centered satellite photo of {}.", "a photo of a {}, a type of aircraft."),
    *("{} texture.", "itap of a {}.", "a bad photo of the {}.", "a origami {}."),
    *("a photo of the large {}.", "a {} in a video game.", "art of the {}."),
    *("a photo of the small {}.", "a photo of a {}.", "a photo of many {}."),
    *("a photo of the hard to see {}.", "a low resolution photo of the {}."),
    *("a rendering of a {}.", "a bad photo of the {}.", "a cropped photo of the {}."),
    *("a pixelated photo of the {}.", "a bright photo of the {}.", "a cropped photo of a {}."),
    *("a photo of the {}.", "a good photo of the {}.", "a rendering of the {}."),
    *("a close-up photo of the {}.", "a low resolution photo of a {}.", "a rendition of the {}."),
    *("a photo of the clean {}.", "a photo of a large {}.", "a blurry photo of a {}."),
    *("a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}."),
    "a good photo of a {}.",
]


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.LASP and the ranges of its values."""
    cfg.TRAINER.LASP = CfgNode()
    cfg.TRAINER.LASP.N_CTX = 4  # M
    cfg.TRAINER.LASP.CTX_INIT = WORDS  # words to start from; they set M
    cfg.TRAINER.LASP.ENABLE = True  # False: no L_tt
    cfg.TRAINER.LASP.LASP_PROMPTS = TEMPLATES
    cfg.TRAINER.LASP.LASP_LOSS_WEIGHT = 5.0  # α; 10 for Caltech101, DTD and UCF101 in its runs
    cfg.TRAINER.LASP.NAMES = "base"  # base | all: whose names L_tt sees
    cfg.TRAINER.LASP.NEGATIVES = "base"  # base | all: whose names the cross entropy sees
    cfg.TRAINER.LASP.NOISE = 0.05  # its standard deviation
    cfg.TRAINER.LASP.ENABLE_CORRECTION = True  # False: no w
    cfg.TRAINER.LASP.TRAIN_W = True  # False: w stays 0
    cfg.TRAINER.LASP.FINETUNE_VIT_LN = True  # False: the image tower stays as it is
    cfg.TRAINER.LASP.GROUPS = 1  # K
    cfg.TRAINER.LASP.CLIP_NORM = 1.0  # of the gradient; 0: it isn't clipped
    cfg.TRAINER.LASP.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.LASP.CTX_INIT")
    negatives = {True: "all", False: "base"}
    public(cfg, "DATASET.INCLUDE_ALL_CLASSES", "TRAINER.LASP.NEGATIVES", values=negatives)
    for key in ("ENABLE_IMPLICIT_OP", "PRETRAINED_PROMPTS_DIR"):
        public(cfg, f"TRAINER.LASP.{key}", None, "LASP's code never reads it either")
    declare_checks(
        {
            "TRAINER.LASP.N_CTX": whole(1),
            "TRAINER.LASP.GROUPS": whole(1),
            "TRAINER.LASP.LASP_LOSS_WEIGHT": real(0),
            "TRAINER.LASP.NOISE": real(0),
            "TRAINER.LASP.CLIP_NORM": real(0),
        }
    )


class LASPContext(nn.Module):
    """ctx: (M,d_t), or (K,M,d_t) of K groups. w: (1,D), zeros; None without a correction.

    words: token ids of the frozen words after the context.
    """

    def __init__(self, initial: torch.Tensor, dim: int | None, words: Sequence[int] = ()) -> None:
        super().__init__()
        self.ctx = nn.Parameter(initial)
        self.w = None if dim is None else nn.Parameter(torch.zeros(1, dim))
        self.words = words


class BlockNorms(nn.Module):
    """A block's two LayerNorms, copied."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name in ("ln_1", "ln_2"):
            frozen = getattr(block, name)
            own = nn.LayerNorm(frozen.normalized_shape, eps=frozen.eps)
            own.load_state_dict(frozen.state_dict())
            self.add_module(name, own)


def all_names(classes: Classes) -> dict[str, str]:
    """The names of all classes that a run's were chosen from, by key."""
    return dict(classes.label_space) or dict(zip(classes.keys, classes.names, strict=True))


class LASPMethod(Method):
    """CoOp with w, trained LayerNorms in the image tower, and L_tt.

    Its features have two more in training: "learned" (K,m,D), e of the m names that the losses see,
    and "noise" (n,m,D), to be added to the references.

    Args:
        context: `LASPContext`.
        norms: a `BlockNorms` per image block; None: the tower stays as it is.
        templates: n of them, each with one {}.
        weight: α; 0: no L_tt.
        names, negatives: "base" or "all", whose names L_tt and the cross entropy see.
        noise: standard deviation of what is added to the references in half of the steps.
    """

    sentences_for = "training"
    rows: torch.Tensor | None
    references: torch.Tensor | None
    shares: torch.Tensor | None

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        context: LASPContext,
        norms: nn.ModuleList | None = None,
        templates: Sequence[str] = tuple(TEMPLATES),
        weight: float = 5.0,
        names: str = "base",
        negatives: str = "base",
        noise: float = 0.05,
    ) -> None:
        super().__init__(encoders, classes)
        check_choice("TRAINER.LASP.NAMES", names, NAMES)
        check_choice("TRAINER.LASP.NEGATIVES", negatives, NAMES)
        self.context = context
        self.trained_modules = ("context",)
        if norms is not None:
            self.norms = norms
            self.trained_modules = ("context", "norms")
            self.image_tower_untouched = False
        self.words = context.words
        self.groups = 1 if context.ctx.dim() == 2 else len(context.ctx)
        if len(templates) < self.groups:
            raise UserError(_FEWER.format(self.groups, f"{len(templates)} LASP_PROMPTS"))
        self.templates = list(templates)
        self.weight, self.noise = weight, noise
        self.text_names, self.negatives = names, negatives
        self.layout = self._layout(classes.names)
        # Where this run's classes stand among those that the losses see; None: they are these.
        rows = None
        self.seen = dict(zip(classes.keys, classes.names, strict=True))
        if "all" in (names, negatives):
            self.seen = all_names(classes)
            rows = torch.tensor(rows_of(classes.keys, list(self.seen)))
        self.register_buffer("rows", rows, persistent=False)
        # Made when training begins, as testing needs none. references: (n,m,D), h not normalized;
        # shares: (n,m), where there are own sentences: whether there is a p-th.
        self.seen_layout: PromptLayout | None = None
        self.register_buffer("references", None, persistent=False)
        self.register_buffer("shares", None, persistent=False)

    @classmethod
    def what_it_sees(cls, cfg: CfgNode) -> tuple[str, ...]:
        """All names, where a loss takes them in."""
        c = cfg.TRAINER.LASP
        taken = {c.NEGATIVES, c.NAMES if c.ENABLE and c.LASP_LOSS_WEIGHT else "base"}
        return ("new_class_names",) if "all" in taken else ()

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """N_CTX becomes what CTX_INIT sets."""
        resolve_words(cfg.TRAINER.LASP)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> LASPMethod:
        """From all keys of TRAINER.LASP.

        Raises:
            UserError: a template without one {}, fewer templates than groups, unknown choices.
        """
        c = cfg.TRAINER.LASP
        for template in c.LASP_PROMPTS:
            if template.count("{}") != 1:
                raise UserError(f"TRAINER.LASP.LASP_PROMPTS: {template!r} needs one {{}}")
        starts = [starting_context(encoders, c.CTX_INIT, c.N_CTX) for _ in range(c.GROUPS)]
        print(f"Initial context: {starts[0].shown}{f', {c.GROUPS} of it' * (c.GROUPS > 1)}")
        vectors = torch.stack([start.vectors for start in starts])
        corrected = c.ENABLE_CORRECTION and c.TRAIN_W
        context = LASPContext(
            vectors if c.GROUPS > 1 else vectors[0],
            encoders.embed_dim if corrected else None,
            starts[0].words,
        )
        norms = None
        if c.FINETUNE_VIT_LN:
            norms = nn.ModuleList(map(BlockNorms, encoders.image.vit.transformer.resblocks))
        weight = c.LASP_LOSS_WEIGHT if c.ENABLE else 0.0
        method = cls(
            *(encoders, classes, context, norms, c.LASP_PROMPTS, weight, c.NAMES, c.NEGATIVES),
            c.NOISE,
        )
        told = "sentences of their own" if classes.described else f"{len(c.LASP_PROMPTS)} templates"
        print(f"L_tt sees {method.number_of_names} names in {told}")
        return method

    @property
    def number_of_names(self) -> int:
        """How many names L_tt sees."""
        return len(self.seen) if self.text_names == "all" else len(self.classes.names)

    def _layout(self, names: Sequence[str]) -> PromptLayout:
        n_ctx = self.context.ctx.shape[-2]
        return self.encoders.text.layout(names, n_ctx, words=self.words)

    def train(self, mode: bool = True) -> LASPMethod:
        """As PyTorch's; going into training it makes what that alone needs."""
        super().train(mode)
        if mode:
            self._prepare()
        return self

    def _prepare(self) -> None:
        """Make what training alone needs, unless it is there."""
        if self.rows is not None and self.seen_layout is None:
            self.seen_layout = self._layout(list(self.seen.values()))
        if self.weight and self.references is None:
            keys = self._text_keys()
            own = sentences_of(self.classes, keys)
            if own is not None:
                if (fewest := min(map(len, own))) < self.groups:
                    raise UserError(_FEWER.format(self.groups, f"{fewest} sentences of a class"))
                self.references, self.shares = pad_sentences(self.encoders, own)
                return
            names = Classes([self.seen[key] for key in keys], keys)
            encoded = {t: self.encoders.text.encode(names.sentences(t)) for t in self.templates}
            self.references = torch.stack([encoded[t] for t in self.templates])

    def _text_keys(self) -> list[str]:
        """Of the classes whose names L_tt sees."""
        return list(self.seen) if self.text_names == "all" else list(self.classes.keys)

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """A step's noise (P,A,D)."""
        if not (self.noise and self.weight):
            return {}
        device = self.encoders.logit_scale.device
        own = sentences_of(self.classes, self._text_keys())
        n = max(map(len, own)) if own else len(self.templates)
        shape = (n, self.number_of_names, self.encoders.embed_dim)
        noisy = torch.rand(1, generator=generator, device=device) < 0.5
        noise = torch.randn(shape, generator=generator, device=device)
        return {"noise": self.noise * noisy * noise}

    def param_groups(self, lr: float) -> list[dict]:
        """Context and w at `lr`; the LayerNorms at a tenth of it."""
        groups = [{"params": list(self.context.parameters()), "lr": lr}]
        if not self.image_tower_untouched:
            groups.append({"params": list(self.norms.parameters()), "lr": lr * NORM_LR_MULT})
        return groups

    def _learned(self, layout: PromptLayout) -> torch.Tensor:
        """The features e of a layout's m classes, (K,m,D)."""
        ctx = self.context.ctx
        text = self.encoders.text(layout, ctx.unsqueeze(1) if ctx.dim() == 3 else ctx)
        text = text if text.dim() == 3 else text.unsqueeze(0)
        return text if self.context.w is None else text + self.context.w.to(text.dtype)

    def encode_text(self) -> torch.Tensor:
        """(C,D): e; of several groups the mean of their ê, which stays as long as it is."""
        return self._joined(self._learned(self.layout))

    @staticmethod
    def _joined(learned: torch.Tensor) -> torch.Tensor:
        return learned[0] if len(learned) == 1 else unit(learned).mean(dim=0)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → (B,D), with the trained LayerNorms, where there are such."""
        if self.image_tower_untouched:
            return super().encode_image(image)
        changes = [Weights(i, dict(own.named_parameters())) for i, own in enumerate(self.norms)]
        return self.encoders.image(image, changes=changes)

    def features(
        self, image: torch.Tensor, noise: torch.Tensor | None = None, **known: torch.Tensor
    ) -> Features:
        """Image (B,3,I,I) → (B,D) and (C,D); in training also e of all names, and the noise."""
        image = self.encode_image(image)
        if not self.training:
            return Features(image, self.text_features())
        self._prepare()
        learned = self._learned(self.seen_layout or self.layout)
        more = {**known, "learned": learned}
        if noise is not None:
            more["noise"] = noise
        return Features(image, self._joined(self._own(learned)), more)

    def _own(self, learned: torch.Tensor) -> torch.Tensor:
        """The rows of this run's classes."""
        return learned if self.rows is None else learned[:, self.rows]

    def itm_logits(self, features: Features) -> torch.Tensor:
        """τ f̂ êᵀ (B,C); of several groups the mean of theirs."""
        if self.groups == 1:
            return super().itm_logits(features)
        return self.encoders.temperature * unit(features.image) @ features.text.t()

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """L_ITM as "itm", among all names with NEGATIVES "all"; α L_tt as "text". label: (B,)."""
        losses = super().losses(features, label)
        learned = features.more["learned"]
        if self.negatives == "all" and self.rows is not None:
            among = Features(features.image, self._joined(learned))
            losses["itm"] = F.cross_entropy(self.itm_logits(among), self.rows[label])
        if self.references is not None:
            learned = learned if self.text_names == "all" else self._own(learned)
            references = unit(self.references)
            if "noise" in features.more:
                references = references + features.more["noise"]
            losses["text"] = self.weight * self._text_to_text(learned, references)
        return losses

    def _text_to_text(self, learned: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """L_tt of learned (K,m,D) and references (n,m,D)."""
        own = torch.arange(learned.shape[1], device=learned.device)
        each = []
        for group, text in enumerate(unit(learned)):
            queries = references[group :: self.groups].flatten(0, 1)
            logits = self.encoders.temperature * queries @ text.t()
            targets = own.repeat(len(queries) // len(own))
            if self.shares is None:
                each.append(F.cross_entropy(logits, targets))
                continue
            shares = self.shares[group :: self.groups]
            shares = (shares / shares.sum(dim=0)).flatten() / len(own)
            each.append(F.cross_entropy(logits, targets, reduction="none") @ shares)
        return torch.stack(each).mean()


@TRAINER_REGISTRY.register()
class LASP(PromptTrainer):
    """Language-Aware Soft Prompting."""

    method_class = LASPMethod
    config_node = "LASP"
    claim = Claim(
        "telling classes apart by their hand-written features keeps more of the new ones than CoOp",
        (Row("LASP", "LASP"),),
        (FROM_WORDS, SIXTEEN_VECTORS),
    )

    def model_update(self, names: str | list[str] | None = None) -> None:
        """As every trainer's, after clipping the gradient over all that is trained."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        norm = self.method_cfg(self.cfg).CLIP_NORM
        clip_gradients(optims, self.scaler, self.method.trained().values(), norm)
        super().model_update(names)

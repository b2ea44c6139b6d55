"""The contract of a method: what all prompt-tuning methods implement, and what they share.

A method is parts passed in (prompts to learn, the two prompt-taking encoders), and three functions:

    features = method.features(image)          image (B,D), text (C,D) or (B,C,D); not normalized
    losses   = method.losses(features, label)  {"itm": …, "kg": …}: named, already weighted
    logits   = method.logits(features)         (B,C)

It names the modules it trains; freezing, optimizer groups and checkpoints follow from that. What
else it needs it declares: changes inside the towers, several views of an image, the training images
before the first step, a teacher, other class names, a step or optimizers of its own.

Letters in shape comments, here and wherever PyTorch's tensors are described:

    B images of a batch         M context tokens            W width of a tower
    C classes                   N prompts per layer         d_t, d_v W of the text, image tower
    D width of the embedding    J prompted layers           H heads of attention, E = W/H
    I pixels a side             L tokens of a sequence      G patches a side, G² of an image
    V views of a pass           P tokens of a prefix        K contexts side by side
    R runs trained at once      S tokens of all suffixes    T tokens of some classes' suffixes

Small letters are told where they are used; n is any other number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from clip.prompting import (
    END,
    Change,
    Encoders,
    PromptLayout,
    Reads,
    TextState,
)
from dassl.config import CfgNode

from .classes import Classes
from .saved import Saved

if TYPE_CHECKING:
    from .step import OwnStep
    from .teacher import Teacher
    from .training_data import TrainingData


@dataclass
class Features:
    """What the encoders give for a batch, not normalized.

    image: (B,D). text: (C,D), or (B,C,D) where each image has its own. more: further ones that a
    method's losses read, by names of its own, such as "frozen_image" (B,D), the unprompted tower's
    features of the same view.
    """

    image: torch.Tensor
    text: torch.Tensor
    more: dict[str, torch.Tensor] = field(default_factory=dict)


def unit(x: torch.Tensor) -> torch.Tensor:
    """L2-normalized rows, in fp32 at least whatever the towers' precision."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def cosine_logits(image: torch.Tensor, text: torch.Tensor, temperature: torch.Tensor | float):
    """τ f̂ êᵀ: image (B,D), text (C,D) or (B,C,D) → (B,C)."""
    image, text = unit(image), unit(text)
    if text.dim() == 3:
        return temperature * (text @ image.unsqueeze(-1)).squeeze(-1)
    return temperature * image @ text.t()


class Method(Saved):
    """Base of all methods: the ITM head on the features of `encode_image` and `encode_text`."""

    # What it takes DATASET.SENTENCES for: "training", its losses alone; "features", tests, too; "".
    sentences_for = ""
    template_name = ""  # which of a data set's templates it reads, where it has one of that name
    # Others that it reads beside that, by `Classes.template_named`.
    further_templates: tuple[str, ...] = ()
    # Its losses that are the fit to the labels: what DePT scales by 1−λ. None: DePT can't wrap it.
    label_fit: tuple[str, ...] = ("itm",)
    # Whether a view's image features never change: no trained input enters the image tower.
    image_tower_untouched = True
    draws_inside = False  # whether training draws inside the towers: no two paths draw the same
    # Whether its losses also read the unprompted tower's features of each view; its `features` then
    # takes them as `frozen_image` where they are at hand.
    compares_with_frozen_image = False
    # What it sees beside labeled training images and their classes' names, in the words of sees.py.
    sees: tuple[str, ...] = ()
    # Views of each training image that it wants; 0: as many as DATALOADER.K_TRANSFORMS says.
    views_wanted = 1
    # Config keys of files, without which it can't be trained: their content is part of identity.
    needs_files: tuple[str, ...] = ()
    teacher_key = ""  # the config key that names the run it learns from; "": none
    teacher_run: Teacher | None = None  # what is there, while training
    # Token ids of the frozen words between context and class name, the same in all prompts.
    words: Sequence[int] = ()
    tail = "."  # what follows the class name in its prompts

    def __init__(self, encoders: Encoders, classes: Classes) -> None:
        super().__init__()
        self.encoders = encoders
        self.classes = classes
        self._at_start: dict[str, torch.Tensor] = {}
        self._text_cache: tuple[tuple, torch.Tensor] | None = None
        self._text_states: dict[tuple, tuple[PromptLayout, TextState]] = {}

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> Method:
        """Build the method: the one place where it reads its config.

        Args:
            cfg: the whole config; a method's own node is TRAINER.<…>.
            encoders: the frozen towers, shared with other methods.
            classes: the C classes of the run.

        Raises:
            UserError: a setting that the towers or classes don't allow.
        """
        raise NotImplementedError

    # What a method may override.

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """Write into the config what `from_cfg` will make of it, where that is something else."""

    @classmethod
    def what_it_sees(cls, cfg: CfgNode) -> tuple[str, ...]:
        """`sees`, under this config."""
        return cls.sees

    def chosen(self) -> dict[str, float | str]:
        """What it chose by images before its first step: values by name, and "by" which images."""
        return {}

    def encode_text(self) -> torch.Tensor:
        """(C,D) text features e_c, not normalized, where they don't depend on the image."""
        raise NotImplementedError

    def image_changes(self) -> Sequence[Change]:
        """What is changed inside the image tower, made of what is trained in this step.

        What lies below the first change's layer is computed once for each view.
        """
        return ()

    def image_reads(self) -> Reads:
        """What else is read of the image tower; it comes in `Features.more`, by these names."""
        return {}

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Image features f, not normalized: (B,3,I,I) → (B,D), with `image_changes`.

        Where the tower is untouched, (B,D) features pass as they are; where it is changed from a
        layer on, (B,L,W) tokens before that layer are gone on from.
        """
        return self._seen(image)["features"]

    def features(self, image: torch.Tensor, **known: torch.Tensor) -> Features:
        """What `losses` and `logits` read of a batch; in training a graph to what is trained.

        image: (B,3,I,I); or what is kept of it, see `encode_image`.
        known: in training, what is declared: of the views beyond the first other_views
            (v,B,…), which become "other_views" (v,B,D) in `more`; of a teacher its logits teacher
            (B,C), which are computed where they are missing. A method that compares with the
            unprompted tower's features also takes those, frozen_image (B,D), or computes them. Of
            several data sets dataset () is the batch's: 0 the run's own, i + 1 that of
            `classes.further[i]`, whose classes its labels then count.
        """
        more: dict[str, torch.Tensor] = {}
        if self.image_reads():
            more = dict(self._seen(image))
            of_image = more.pop("features")
        else:
            of_image = self.encode_image(image)
        if "other_views" in known:
            views = known["other_views"]
            of_all = self.encode_image(views.flatten(0, 1))
            more["other_views"] = of_all.unflatten(0, views.shape[:2])
        if self.training and self.teacher_run is not None:
            taught = known.get("teacher")
            more["teacher"] = self.teacher_run.logits(image) if taught is None else taught
        return Features(image=of_image, text=self.text_features(), more=more)

    def prepare(self, data: TrainingData) -> None:
        """Look at the training images once, before the first step of a run.

        What comes of it stands in the trained parameters, changed in place, or in the buffers that
        `prepared` names. Called without gradients, with random numbers of the run's seed alone;
        not called where a run goes on or is tested: then the checkpoint has it.
        """

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """What a step takes beside its batch, by name: random numbers, what changes with time.

        `features` takes them as keywords. They are the same for the same seed, epoch and images,
        so that a run resumes, or goes side by side with others, to the same numbers.

        generator: what to draw from, on the method's device; None: torch's own.
        progress: the share of the epochs that have begun, from 1/MAX_EPOCH to 1.
        """
        return {}

    def further_images(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        places: Sequence[Sequence[int]],
        generator: torch.Generator | None,
    ) -> list[int]:
        """Which training images join a batch: their places in the list of training images.

        The step then is on the batch and their views of this epoch, after it. Runs trained at
        once have no such batches, and refuse them.

        image: of the batch, as `features` takes it. label: (B,). places: of each class's training
            images. generator: what to draw from, see `drawn`.
        """
        raise NotImplementedError

    def before_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, from 0 to epochs − 1, also of a run that goes on.

        A trained parameter whose requires_grad is off rests: no optimizer touches it.
        """

    def as_start(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What this method makes of another run's parameters (MODEL.INIT_WEIGHTS), by name.

        Names that it leaves out are neither taken nor missed.
        """
        return state

    def own_step(self, batch: dict[str, torch.Tensor], own: OwnStep) -> dict[str, torch.Tensor]:
        """A training step of its own, in place of the usual one; → its losses by name.

        batch: image, label, and what else `features` takes. own: losses, gradients, updates. Runs
        trained at once have no such step, and refuse it.
        """
        raise NotImplementedError

    def own_optimizers(self, c: CfgNode) -> dict[str, tuple[Optimizer, LRScheduler | None]]:
        """Optimizers of its own by name, and their schedules, stepped once an epoch.

        What they train the usual one leaves alone. Each is saved in a folder of its name.

        c: cfg.OPTIM.
        """
        return {}

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses by name, each () and already weighted; training minimises their sum.

        Unless overridden L_ITM = −1/B Σ_j log softmax(τ f̂_j êᵀ)_{y_j}, as "itm" (Radford et al.
        2021, arXiv 2103.00020; CoOp, arXiv 2109.01134, eq. 1 and its cross entropy).

        label: y, (B,) indices of classes.
        """
        return {"itm": F.cross_entropy(self.itm_logits(features), label)}

    def logits(self, features: Features) -> torch.Tensor:
        """Scores of the classes, (B,C); unless overridden τ f̂ êᵀ, those of the ITM head."""
        return self.itm_logits(features)

    # What all have.

    def settled(self) -> Method:
        """What a test of this model runs, with nothing left to choose: to write as a graph."""
        return self

    def has_own_step(self) -> bool:
        """Whether it defines `own_step`."""
        return type(self).own_step is not Method.own_step

    def draws(self) -> bool:
        """Whether it defines `drawn`."""
        return type(self).drawn is not Method.drawn

    def asks_for_images(self) -> bool:
        """Whether it defines `further_images`."""
        return type(self).further_images is not Method.further_images

    def image_layer(self) -> int | None:
        """The image tower's layer below which nothing changes or is read; None: nor is above it.

        What stands there, (B,L,W) tokens or (B,D) features, is all that is needed of a view.
        """
        changes, reads = self.image_changes(), self.image_reads()
        if not changes and not reads:
            return None if self.image_tower_untouched else 0
        encoder = self.encoders.image
        layers = [encoder.first_layer(changes)]
        for read in reads.values():
            layer = read.reaches(encoder.layers)
            # Behind the last block only the class token is kept.
            layers.append(layer - (read.at != END and layer == encoder.layers))
        return min(layers)

    def _seen(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The features (B,D), and what is read, of images or of what is kept of them."""
        changes, reads = self.image_changes(), self.image_reads()
        encoder = self.encoders.image
        if image.dim() == 2:
            return {"features": image}
        layer = self.image_layer()
        if image.dim() == 3 and layer is not None:
            seen = encoder.above(image, layer, changes, reads)
        elif changes or reads:
            seen = encoder(image, changes=changes, reads=reads)
        else:
            seen = encoder(image)
        return seen if isinstance(seen, dict) else {"features": seen}

    def text_of(
        self,
        layout: PromptLayout,
        changes: Sequence[Change] = (),
        reads: Reads | None = None,
        classes: torch.Tensor | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Text features of prompts without a context, (C,D): `encoders.text(layout, …)`.

        What lies below the first change's layer is computed once, and kept in memory. With
        classes (n,), indices of some in this order, the features are (n,D).
        """
        encoder, asked = self.encoders.text, list((reads or {}).values())
        reached = [read.reaches(encoder.layers) for read in asked]
        tokens = any(read.at != END for read in asked)  # behind the last block only EOT is kept
        layer = min([encoder.first_layer(changes), *reached, encoder.layers - tokens])
        device = encoder.positional_embedding.device
        key = (id(layout), layer, encoder.dtype, device, torch.is_autocast_enabled(device.type))
        if key not in self._text_states:  # the layout is held, so that its id stays its own
            self._text_states[key] = layout, encoder.below(layout, layer)
        state = self._text_states[key][1]
        return encoder.above(state if classes is None else state.select(classes), changes, reads)

    def itm_logits(self, features: Features) -> torch.Tensor:
        """The image-text-matching head: τ f̂ êᵀ, (B,C)."""
        return cosine_logits(features.image, features.text, self.encoders.temperature)

    def text_features(self) -> torch.Tensor:
        """`encode_text`, computed once for as long as no trained parameter changes."""
        if torch.is_grad_enabled():
            return self.encode_text()
        state = tuple((id(p), p._version, p.device) for p in self.trained().values())
        if self._text_cache is None or self._text_cache[0] != state:
            self._text_cache = (state, self.encode_text())
        return self._text_cache[1]

    def forget_text(self) -> None:
        """Have the text features computed anew at their next use."""
        self._text_cache = None

    def param_groups(self, lr: float) -> list[dict]:
        """Optimiser groups at the base learning rate `lr`."""
        return [{"params": list(self.trained().values()), "lr": lr}]

    def freeze(self) -> Method:
        """Let gradients flow to exactly what `trained` names; what else it holds is its start."""
        self.remember_start()
        self.requires_grad_(False)
        for parameter in self.trained().values():
            parameter.requires_grad_(True)
        return self

    def train(self, mode: bool = True) -> Method:
        """As nn.Module's, but the frozen towers always stay in eval mode."""
        super().train(mode)
        self.encoders.eval()
        return self

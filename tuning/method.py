"""The contract of a method: what all prompt-tuning methods implement, and what they share.

A method is parts passed in (prompts to learn, the two prompt-taking encoders), and three functions:

    features = method.features(image)          image (B,D), text (C,D) or (B,C,D); not normalised
    losses   = method.losses(features, label)  {"itm": …, "kg": …}: named, already weighted
    logits   = method.logits(features)         (B,C)

It names the modules it trains; freezing, optimiser groups and checkpoints follow from that.

Letters in shape comments, here and wherever PyTorch's tensors are described:

    B images of a batch         M context tokens            W width of a tower
    C classes                   N prompts per layer         d_t, d_v W of the text, image tower
    D width of the embedding    J prompted layers           H heads of attention, E = W/H
    I pixels a side             L tokens of a sequence      G patches a side, G² of an image
    V views of a pass           P tokens of a prefix        K contexts side by side
    R runs trained at once      S tokens of all suffixes    T tokens of some classes' suffixes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode
from dassl.utils import UserError

ASSUMED = "assumed to be this run's classes in order: the checkpoint doesn't tell its classes"


@dataclass
class Features:
    """What the encoders give for a batch, not normalised.

    image: (B,D). text: (C,D), or (B,C,D) where each image has its own. more: further ones that a
    method's losses read, by names of its own, such as "frozen_image" (B,D), the unprompted tower's
    features of the same view.
    """

    image: torch.Tensor
    text: torch.Tensor
    more: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Classes:
    """The classes of a run. names: for prompts; keys: their identity; template: with one {}.

    label_space: names by key of all classes they were chosen from, in label order; {} if none but
    they. template_joins_ensembles: whether an ensemble of general templates takes it in.
    """

    names: list[str]
    keys: list[str]
    template: str = "a photo of a {}."
    label_space: Mapping[str, str] = field(default_factory=dict)
    template_joins_ensembles: bool = True

    def sentences(self, template: str | None = None) -> list[str]:
        """The template filled with every class name, underscores as spaces."""
        template = template or self.template
        return [template.replace("{}", name.replace("_", " ")) for name in self.names]


def unit(x: torch.Tensor) -> torch.Tensor:
    """L2-normalised rows, in fp32 at least whatever the towers' precision."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def cosine_logits(image: torch.Tensor, text: torch.Tensor, temperature: torch.Tensor):
    """τ f̂ êᵀ: image (B,D), text (C,D) or (B,C,D) → (B,C)."""
    image, text = unit(image), unit(text)
    if text.dim() == 3:
        return temperature * (text @ image.unsqueeze(-1)).squeeze(-1)
    return temperature * image @ text.t()


def rows_of(keys: Sequence[str], among: Sequence[str]) -> list[int] | None:
    """Where each key stands in `among`; None if one isn't there."""
    place = {key: i for i, key in enumerate(among)}
    if any(key not in place for key in keys):
        return None
    return [place[key] for key in keys]


class Method(nn.Module):
    """Base of all methods: the ITM head on the features of `encode_image` and `encode_text`."""

    # The submodules it trains, by attribute name; everything else is frozen.
    trained_modules: tuple[str, ...] = ()
    # Trained parameters with one row per class, by a name of theirs in `names()`.
    class_bound: tuple[str, ...] = ()
    # Which of a data set's templates it reads, where there is one of that name.
    template_name = ""
    # Its losses that are the fit to the labels: what DePT scales by 1−λ. None: DePT can't wrap it.
    label_fit: tuple[str, ...] = ("itm",)
    # Whether a view's image features never change: no trained input enters the image tower.
    image_tower_untouched = True
    # Whether its losses also read the unprompted tower's features of each view; its `features` then
    # takes them as `frozen_image` where they are at hand.
    compares_with_frozen_image = False
    # What of a loaded checkpoint can't be applied to this run's classes, in a line; "": nothing.
    left_out = ""
    # Token ids of the frozen words between context and class name, the same in all prompts.
    words: Sequence[int] = ()

    def __init__(self, encoders: Encoders, classes: Classes) -> None:
        super().__init__()
        self.encoders = encoders
        self.classes = classes
        self._text_cache: tuple[tuple, torch.Tensor] | None = None

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

    def encode_text(self) -> torch.Tensor:
        """(C,D) text features e_c, not normalised, where they don't depend on the image."""
        raise NotImplementedError

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Image features f, not normalised: (B,3,I,I) → (B,D).

        Where the tower is untouched, (B,D) features pass as they are.
        """
        return image if image.dim() == 2 else self.encoders.image(image)

    def features(self, image: torch.Tensor) -> Features:
        """What `losses` and `logits` read of a batch; in training a graph to what is trained.

        image: (B,3,I,I), or (B,D) features of an untouched image tower. A method that compares
            with the unprompted tower's features also takes them, frozen_image (B,D), or computes
            them where they are None.
        """
        return Features(image=self.encode_image(image), text=self.text_features())

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

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters this method trains, by the names they have in checkpoints.

        A name is qualified by its module's: two modules may have parameters of one name.
        """
        return {
            f"{module}.{name}": parameter
            for module in self.trained_modules
            for name, parameter in getattr(self, module).named_parameters()
        }

    def names(self) -> dict[str, str]:
        """The name in `trained()` by each name that a checkpoint may have for a parameter.

        Beside that name itself it is the one without its module, as older checkpoints have it,
        unless two modules have it.
        """
        own = list(self.trained())
        short = [name.partition(".")[2] for name in own]
        old = {s: name for s, name in zip(short, own, strict=True) if short.count(s) == 1}
        return {**old, **{name: name for name in own}}

    def param_groups(self, lr: float) -> list[dict]:
        """Optimiser groups at the base learning rate `lr`."""
        return [{"params": list(self.trained().values()), "lr": lr}]

    def freeze(self) -> Method:
        """Let gradients flow to exactly what `trained` names."""
        self.requires_grad_(False)
        for parameter in self.trained().values():
            parameter.requires_grad_(True)
        return self

    def train(self, mode: bool = True) -> Method:
        """As nn.Module's, but the frozen towers always stay in eval mode."""
        super().train(mode)
        self.encoders.eval()
        return self

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The values of `trained()`, detached."""
        return {name: p.detach().clone() for name, p in self.trained().items()}

    @torch.no_grad()
    def load_trained(
        self, state: dict[str, torch.Tensor], keys: Sequence[str] | None, partial: bool = False
    ) -> list[str]:
        """Copy values in by name; class-bound ones by class key. Returns the names taken.

        Args:
            state: values by names of `names()`.
            keys: the class keys they were trained on; None if unknown, empty if unknown but others
                than this run's.
            partial: accept missing names and leave what is bound to other classes (a start for
                training) instead of refusing.

        Raises:
            UserError: names or shapes differ, or class-bound values of other classes.
        """
        own, names = self.trained(), self.names()
        state = {names.get(name, name): value for name, value in state.items()}
        class_bound = {names[name] for name in self.class_bound}
        unknown = [name for name in state if name not in own]
        missing = [name for name in own if name not in state]
        if unknown or (missing and not partial):
            raise UserError(
                "the checkpoint is of another method: "
                + "; ".join(
                    f"{what} {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
                    for what, names in (("it lacks", missing), ("it also has", unknown))
                    if names
                )
            )
        taken = []
        for name, value in state.items():
            if name in class_bound:
                rows = self._own_rows(name, value, keys)
                if rows is None and partial:
                    continue
                if rows is None:
                    raise UserError(
                        f"{name} is learned per class, and the checkpoint was trained on other "
                        "classes than this run's: it can't be applied to them"
                    )
                value = rows
            if value.shape != own[name].shape:
                raise UserError(
                    f"{name} has shape {tuple(value.shape)} in the checkpoint and "
                    f"{tuple(own[name].shape)} here: set the method's options as in training"
                )
            own[name].copy_(value)
            taken.append(name)
        return taken

    def _own_rows(
        self, name: str, value: torch.Tensor, keys: Sequence[str] | None
    ) -> torch.Tensor | None:
        if value.dim() != self.trained()[name].dim():  # not per class in the checkpoint
            return value
        if keys is None:
            if len(value) != len(self.classes.keys):
                return None
            print(f"The rows of {name} are {ASSUMED}")
            return value
        rows = rows_of(self.classes.keys, keys)
        return None if rows is None else value[rows]

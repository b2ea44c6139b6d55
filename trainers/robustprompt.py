"""RobustPrompt: words that hold under corruption, found by search. Adaptation: ours.

A cousin of BATprompt (PGO, arXiv 2412.18196), and not under its name: there a language model
rewrites the input to hurt an instruction, explains the damage and writes the next instruction. CLIP
has none of these roles. What is kept is the principle: perturb the inputs against the prompt,
within what leaves their meaning, and search the prompt by its score there. No result on CLIP was
published.

A prompt t is a template of words with one {}. On the n training images, each seen as in a test,

    views     v_i0 the image itself; v_ir that image under the r-th named corruption of images
    accepted  v_i0, and the v_ir with cos(f(v_ir), f(v_i0)) ≥ s
    typos     v_i0 against misspelt class names; a name whose features in the data set's template
              come nearer than s to its own, by cosine, is replaced, others stay
    margin    m_ir(t) = p_y − max_{c≠y} p_c,  p = softmax(τ f̂(v_ir) ê(t)ᵀ)
    score     mean_i min_r m_ir(t), over the accepted ones and the typos

Search: P prompts, the data set's template and the first of OpenAI's 80. In each of E rounds the
best K stay, and P − K new ones are made of them: a word put in, replaced or left out, or the prompt
replaced by a template. Words are CLIP's own tokens. The best of all P + E (P − K) prompts is taken;
before the search it is the data set's template. SEARCH "random" is the control of the same budget
and score: the same P prompts, then random words in the places of theirs. CORRUPTIONS () searches on
the clean images. The prompt is text: `DATASET.TEMPLATE` takes it for any other method.

It is no gradient method and trains nothing, so there is nothing to decouple. It has
seen the corruptions that CORRUPTIONS names: tests under them are no tests of unseen ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from clip.open_clip_parts import imagenet_templates
from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.config.severities import CORRUPTIONS, OF_IMAGES, TYPOS
from dassl.data.corruptions import Corrupt, misspelt
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from tuning.claims import Claim, Row
from tuning.method import Classes, Method, cosine_logits, unit
from tuning.trainer import PromptTrainer
from tuning.training_data import TrainingData

from .coop import FROM_WORDS

SEARCHES = ("evolution", "random")
_ROOM = 1024  # bytes of a saved prompt
_TRIES = 100  # for each new prompt, to find one that isn't there yet


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.ROBUSTPROMPT and the ranges of its values."""
    cfg.TRAINER.ROBUSTPROMPT = CfgNode()
    cfg.TRAINER.ROBUSTPROMPT.SEARCH = "evolution"  # evolution | random
    cfg.TRAINER.ROBUSTPROMPT.CORRUPTIONS = CORRUPTIONS  # those searched under; (): none
    cfg.TRAINER.ROBUSTPROMPT.SEVERITY = 3  # 1 to 5
    cfg.TRAINER.ROBUSTPROMPT.MIN_COSINE = 0.8  # s
    cfg.TRAINER.ROBUSTPROMPT.POPULATION = 16  # P
    cfg.TRAINER.ROBUSTPROMPT.KEEP = 4  # K
    cfg.TRAINER.ROBUSTPROMPT.ROUNDS = 5  # E
    cfg.TRAINER.ROBUSTPROMPT.MAX_WORDS = 16  # of a prompt, {} included
    cfg.TRAINER.ROBUSTPROMPT.PREC = "fp16"  # fp32, fp16, bf16, amp
    declare_checks({"TRAINER.ROBUSTPROMPT.SEVERITY": whole(1, 5)})
    declare_checks({"TRAINER.ROBUSTPROMPT.MIN_COSINE": real(-1, 1)})
    declare_checks({f"TRAINER.ROBUSTPROMPT.{key}": whole(1) for key in ("KEEP", "MAX_WORDS")})
    declare_checks({"TRAINER.ROBUSTPROMPT.POPULATION": whole(1, 80)})
    declare_checks({"TRAINER.ROBUSTPROMPT.ROUNDS": whole(0)})


@dataclass(frozen=True)
class Views:
    """features: (R,n,D), those of v_i0 first; accepted: (R,n); labels: (n,)."""

    features: torch.Tensor
    accepted: torch.Tensor
    labels: torch.Tensor


def margins(
    image: torch.Tensor, text: torch.Tensor, label: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """p_y − max_{c≠y} p_c, (n,), of image (n,D), text (C,D), label (n,)."""
    p = cosine_logits(image, text, temperature).softmax(dim=-1)
    own = label[:, None]
    return p.gather(1, own)[:, 0] - p.scatter(1, own, 0.0).amax(dim=1)


Score = Callable[[str], float]


class Search:
    """Prompts by their score; `random` draws.

    Args:
        score: of a prompt, the higher the better.
        templates: what to start from, and what a prompt may be replaced by.
        words: what prompts are made of.
        most: words of a prompt at most.
    """

    def __init__(
        self, score: Score, templates: Sequence[str], words: Sequence[str], most: int
    ) -> None:
        self.score = score
        self.templates = list(dict.fromkeys(templates))
        self.words = words
        self.most = most
        self.scores: dict[str, float] = {}  # in the order of scoring

    def try_out(self, prompt: str) -> None:
        """Score a prompt."""
        self.scores[prompt] = self.score(prompt)

    def best(self, number: int = 1) -> list[str]:
        """The best so far, best first; of equals the earlier one."""
        return sorted(self.scores, key=self.scores.__getitem__, reverse=True)[:number]

    def evolve(self, population: int, keep: int, rounds: int) -> None:
        """Start from the first templates; then rounds of new prompts from the best."""
        for prompt in self.templates[:population]:
            self.try_out(prompt)
        for _ in range(rounds):
            for prompt in self._new(population - keep, self.mutated, self.best(keep)):
                self.try_out(prompt)

    def draw(self, population: int, keep: int, rounds: int) -> None:
        """As many prompts: the same start, then random words in the places of theirs."""
        start = self.templates[:population]
        for prompt in start:
            self.try_out(prompt)
        for prompt in self._new(rounds * (population - keep), self.redrawn, start):
            self.try_out(prompt)

    def _new(self, number: int, change: Callable[[str], str], among: Sequence[str]) -> list[str]:
        """So many changed ones of these, none scored yet; fewer where they can't be found."""
        found: dict[str, None] = {}
        for _ in range(number * _TRIES):
            if len(found) == number:
                break
            prompt = change(random.choice(among))
            if prompt not in self.scores:
                found[prompt] = None
        return list(found)

    def mutated(self, prompt: str) -> str:
        """The prompt with a word more, another word or a word less; or a template in its place."""
        words = prompt.split()
        others = [i for i, word in enumerate(words) if "{}" not in word]
        kinds = ["template"]
        kinds += ["insert"] if len(words) < self.most else []
        kinds += ["replace", "delete"] if others else []
        kind = random.choice(kinds)
        if kind == "template":
            return random.choice(self.templates)
        if kind == "insert":
            words.insert(random.randint(0, len(words)), random.choice(self.words))
        elif kind == "replace":
            words[random.choice(others)] = random.choice(self.words)
        else:
            del words[random.choice(others)]
        return " ".join(words)

    def redrawn(self, prompt: str) -> str:
        """The prompt with another word for each of its own."""
        return " ".join(w if "{}" in w else random.choice(self.words) for w in prompt.split())


class RobustPromptMethod(Method):
    """Frozen text features of the prompt found, images as they are.

    Args:
        settings: the config node.
    """

    prepared = ("prompt_bytes",)
    label_fit = ()  # nothing is trained
    prompt_bytes: torch.Tensor

    def __init__(self, encoders: Encoders, classes: Classes, settings: CfgNode) -> None:
        super().__init__(encoders, classes)
        self.settings = settings
        self.register_buffer("prompt_bytes", torch.zeros(_ROOM, dtype=torch.uint8), False)
        self.prompt = classes.template

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> RobustPromptMethod:
        """From TRAINER.ROBUSTPROMPT.

        Raises:
            UserError: an unknown search or corruption, or more to keep than there are.
        """
        c = cfg.TRAINER.ROBUSTPROMPT
        check_choice("TRAINER.ROBUSTPROMPT.SEARCH", c.SEARCH, SEARCHES)
        for name in c.CORRUPTIONS:
            check_choice("an entry of TRAINER.ROBUSTPROMPT.CORRUPTIONS", name, CORRUPTIONS)
        if c.KEEP > c.POPULATION:
            raise UserError(
                f"TRAINER.ROBUSTPROMPT.KEEP is {c.KEEP}, of a POPULATION of {c.POPULATION}"
            )
        return cls(encoders, classes, c)

    @property
    def prompt(self) -> str:
        """The prompt that is used, with one {}."""
        return bytes(self.prompt_bytes.tolist()).rstrip(b"\0").decode()

    @prompt.setter
    def prompt(self, text: str) -> None:
        data = text.encode()
        if len(data) > _ROOM:
            raise UserError(f"a prompt of {len(data)} bytes is longer than {_ROOM}: {text[:40]}…")
        self.prompt_bytes.copy_(torch.tensor([*data.ljust(_ROOM, b"\0")], dtype=torch.uint8))

    def encode_text(self) -> torch.Tensor:
        """(C,D): of the prompt."""
        return self.encoders.text.encode(self.classes.sentences(self.prompt))

    def prepare(self, data: TrainingData) -> None:
        """Search the prompt."""
        c = self.settings
        views, names = self._views(data), self._misspelt()
        start = [self.classes.template, *imagenet_templates()]
        search = Search(
            lambda t: self.score(t, views, names), start, self.encoders.text.words(), c.MAX_WORDS
        )
        how = {"evolution": search.evolve, "random": search.draw}[c.SEARCH]
        how(c.POPULATION, c.KEEP, c.ROUNDS)
        (self.prompt,) = search.best()
        scores = search.scores
        print(f"Prompt: {self.prompt} (the best of {len(scores)} by {c.SEARCH} search)")
        print(f"Its score: {scores[self.prompt]:.4f}; the template's: {scores[start[0]]:.4f}")

    def score(self, template: str, views: Views, names: Sequence[str]) -> float:
        """The mean over images of the least margin.

        names: those of the typos, misspelt where it counts; none: without typos.
        """
        texts, label = self.encoders.text, views.labels
        text = texts.encode(self.classes.sentences(template))
        temperature = self.encoders.temperature
        least = margins(views.features[0], text, label, temperature)
        for image, accepted in zip(views.features[1:], views.accepted[1:], strict=True):
            found = margins(image, text, label, temperature)
            least = torch.where(accepted, torch.minimum(least, found), least)
        if names:
            sentences = [template.replace("{}", name) for name in names]
            misread = margins(views.features[0], texts.encode(sentences), label, temperature)
            least = torch.minimum(least, misread)
        return float(least.mean())

    def _views(self, data: TrainingData) -> Views:
        """The images' features under the corruptions of images."""
        c = self.settings
        clean = unit(data.features())
        features, accepted = [clean], [torch.ones_like(data.labels, dtype=torch.bool)]
        for name in (name for name in c.CORRUPTIONS if name in OF_IMAGES):
            found = unit(data.features(corrupt=Corrupt(name, c.SEVERITY)))
            features.append(found)
            accepted.append((found * clean).sum(dim=1) >= c.MIN_COSINE)
            print(f"{name}: {int(accepted[-1].sum())} of {len(clean)} views are accepted")
        return Views(torch.stack(features), torch.stack(accepted), data.labels)

    def _misspelt(self) -> list[str]:
        """The class names with the typos that are accepted; [] without typos."""
        c, names = self.settings, [name.replace("_", " ") for name in self.classes.names]
        if TYPOS not in c.CORRUPTIONS:
            return []
        typos, template = misspelt(names, c.SEVERITY), self.classes.template
        right, wrong = (
            unit(self.encoders.text.encode([template.replace("{}", name) for name in each]))
            for each in (names, typos)
        )
        near = ((right * wrong).sum(dim=1) >= c.MIN_COSINE).tolist()
        print(f"{TYPOS}: {sum(near)} of {len(names)} names are accepted")
        return [typo if ok else name for name, typo, ok in zip(names, typos, near, strict=True)]


@TRAINER_REGISTRY.register()
class RobustPrompt(PromptTrainer):
    """A prompt searched under corruptions; adaptation: ours."""

    method_class = RobustPromptMethod
    config_node = "ROBUSTPROMPT"
    claim = Claim(
        "words searched under corruptions keep more accuracy under them than CoOp",
        (Row("RobustPrompt", "RobustPrompt"),),
        (
            FROM_WORDS,
            Row("RobustPrompt, random", "RobustPrompt", {"TRAINER.ROBUSTPROMPT.SEARCH": "random"}),
            Row("RobustPrompt, clean", "RobustPrompt", {"TRAINER.ROBUSTPROMPT.CORRUPTIONS": "()"}),
            Row("zero-shot", "ZeroshotCLIP"),
        ),
        ("corruptions",),
    )

    def result_extra(self) -> dict:
        """As the engine's, and the prompt."""
        assert isinstance(self.method, RobustPromptMethod)
        return {**super().result_extra(), "prompt": self.method.prompt}

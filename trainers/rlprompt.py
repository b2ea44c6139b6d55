"""RLPrompt on CLIP, after RLPrompt (Deng et al., EMNLP 2022, arXiv 2205.12548): words are searched.

Adaptation: ours. The paper prompts language models; its released code has this arithmetic. No
published result on CLIP exists. A prompt is "w₁ … w_K {class name}.", all of it words; a policy
writes it, and learns from how well CLIP then tells the training images apart.

Policy: CLIP's own text tower, frozen, reads [SOS] w₁ … w_t; of its last hidden state h_t, behind
ln_final, a small network makes the logits of the next word,

    q_t = (W₂ relu(W₁ h_t + b₁) + b₂) Eᵀ,   E: the token embeddings of the vocabulary.

P prompts are drawn in each step, each word of the 256 likeliest. The reward of one is the mean over
all training images, seen as in a test, of λ (p_y − max_{c≠y} p_c), p = softmax(τ f̂ êᵀ), λ = 200
where that is positive, 180 elsewhere; over the P prompts it is made a z-score and times 5: r.
Soft Q-learning: Q_t the logit of the word taken, V_t = log Σ exp q_t, A_t = Q_t − V_t, V̄ that of a
network that follows the policy's (Polyak, 10⁻³ before each step);

    one step    A_t = V̄_{t+1} − V̄_t,   A_K = r − V̄_K
    to the end  Σ_{s≥t} A_s = r − V̄_t

and the loss is the mean of the two squared errors, summed over t, the mean over the P prompts. The
gradient's norm is clipped at 5. Of all prompts drawn the one of the highest reward is kept; before
one is, the prompt is "a photo of a". It is in the checkpoint, as words in prompt.txt, and
`TRAINER.ZEROSHOT.TEMPLATE_FILE` takes that file. Classes that weren't trained on take it, too.

What is ours: the text tower in place of GPT-2; b starts at zero (theirs at −10⁻⁴, which at the
scale of CLIP's states would leave most units dead); words of letters alone, so that the text has
these tokens (WHOLE_WORDS False: any token), and none whose embedding is zero; no development set,
and so no greedy decoding on it. A step is made for each batch, whose own images aren't looked at.

Its control is the best of as many random prompts: SEARCH "random". DePT isn't put around it: no
loss of its fits the labels by a gradient that a second head could take over.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from clip.prompting import Encoders, Read
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, atomic_write, check_choice
from tuning.claims import Claim, Row
from tuning.method import Classes, Features, Method, cosine_logits
from tuning.prompts import WORDS
from tuning.step import OwnStep, clip_gradients
from tuning.trainer import PromptTrainer

from .coop import FROM_WORDS

SEARCHES = ("policy", "random")
GAIN = 1e-4  # of the policy's start
EPSILON = 1e-4  # beside the rewards' deviation


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.RLPROMPT and the ranges of its values."""
    cfg.TRAINER.RLPROMPT = CfgNode()
    cfg.TRAINER.RLPROMPT.N_WORDS = 5  # K
    cfg.TRAINER.RLPROMPT.SEARCH = "policy"  # policy | random
    cfg.TRAINER.RLPROMPT.PROMPTS = 16  # P, of a step
    cfg.TRAINER.RLPROMPT.TOP_K = 256  # words that one is drawn from; 0: all
    cfg.TRAINER.RLPROMPT.WHOLE_WORDS = True  # False: any token but SOS and EOT
    cfg.TRAINER.RLPROMPT.HIDDEN = 2048  # of the policy's network
    cfg.TRAINER.RLPROMPT.RIGHT = 200.0  # λ of images that the prompt has right
    cfg.TRAINER.RLPROMPT.WRONG = 180.0  # λ of the others
    cfg.TRAINER.RLPROMPT.REWARD_SCALE = 5.0  # of the z-scores
    cfg.TRAINER.RLPROMPT.POLYAK = 0.001
    cfg.TRAINER.RLPROMPT.CLIP_NORM = 5.0  # 0: the gradient isn't clipped
    cfg.TRAINER.RLPROMPT.PREC = "fp16"  # fp32, fp16, bf16, amp
    counts = ("N_WORDS", "HIDDEN")
    declare_checks({f"TRAINER.RLPROMPT.{key}": whole(1) for key in counts})
    declare_checks({"TRAINER.RLPROMPT.PROMPTS": whole(2), "TRAINER.RLPROMPT.TOP_K": whole(0)})
    numbers = ("RIGHT", "WRONG", "REWARD_SCALE", "CLIP_NORM")
    declare_checks({f"TRAINER.RLPROMPT.{key}": real(0) for key in numbers})
    declare_checks({"TRAINER.RLPROMPT.POLYAK": real(0, 1)})


def gap_reward(p: torch.Tensor, label: torch.Tensor, right: float, wrong: float) -> torch.Tensor:
    """(): the mean over images of λ (p_y − max_{c≠y} p_c). p: (B,C); label: (B,)."""
    own = p.gather(1, label[:, None]).squeeze(1)
    others = p.scatter(1, label[:, None], 0).amax(dim=1)
    gap = own - others
    return (gap * torch.where(gap > 0, right, wrong)).mean()


def soft_q_loss(
    taken: torch.Tensor, value: torch.Tensor, target: torch.Tensor, reward: torch.Tensor
) -> torch.Tensor:
    """Path consistency over one step and to the end, their mean: ().

    taken: Q (P,K); value: V (P,K); target: V̄ (P,K); reward: r (P,).
    """
    advantage = taken - value
    after = torch.cat([target[:, 1:], reward[:, None]], dim=1)
    to_end = advantage.flip(1).cumsum(1).flip(1)
    one_step = (advantage - (after - target)).square()
    several = (to_end - (reward[:, None] - target)).square()
    return ((one_step + several) / 2).sum(dim=1).mean()


class Policy(nn.Module):
    """W₂ relu(W₁ h + b₁) + b₂ of states (…,d_t), in their width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        for linear in (self.up, self.down):
            nn.init.xavier_uniform_(linear.weight, gain=GAIN)
            nn.init.zeros_(linear.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…,d_t) → (…,d_t)."""
        return self.down(self.up(states).relu())


@dataclass(frozen=True)
class Search:
    """How prompts are drawn and judged: the values of TRAINER.RLPROMPT, by the letters above."""

    kind: str = "policy"
    words: int = 5  # K
    prompts: int = 16  # P
    top_k: int = 256
    right: float = 200.0
    wrong: float = 180.0
    scale: float = 5.0
    polyak: float = 0.001


class RLPromptMethod(Method):
    """Text features of a prompt of words, images as they are; a policy's "soft_q" loss.

    Its features have more in training: "ids" (P,K) of the prompts drawn, their "texts" (P,C,D), and
    of a policy "taken", "value" and "target" (P,K): `soft_q_loss`.

    Args:
        policy: the network.
        vocabulary: token ids to write with, V of them.
        search: how.
    """

    trained_modules = ("policy",)
    label_fit = ()
    prepared = ("prompt", "reward")
    prompt: torch.Tensor
    reward: torch.Tensor
    vocabulary: torch.Tensor
    table: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        policy: Policy,
        vocabulary: list[int],
        search: Search,
    ) -> None:
        super().__init__(encoders, classes)
        text = encoders.text
        self.policy, self.target = policy, copy.deepcopy(policy)
        self.search = search
        # Token ids of the prompt that is kept, and its reward.
        self.register_buffer("prompt", torch.tensor(text.token_ids(WORDS)))
        self.register_buffer("reward", torch.tensor(float("-inf")))
        self.register_buffer("vocabulary", torch.tensor(vocabulary), persistent=False)
        self.register_buffer("table", text.embed(vocabulary), persistent=False)
        self.layout = text.layout(classes.names, search.words)
        self.alone = text.layout(["a"], search.words)  # states don't see what follows
        # The training images' features (n,D) and their labels (n,); None: each batch's.
        self.images: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> RLPromptMethod:
        """From TRAINER.RLPROMPT.

        Raises:
            UserError: an unknown SEARCH, or prompts longer than the tower takes.
        """
        c, text = cfg.TRAINER.RLPROMPT, encoders.text
        check_choice("TRAINER.RLPROMPT.SEARCH", c.SEARCH, SEARCHES)
        if c.WHOLE_WORDS:
            vocabulary = list(text.word_ids().values())
        else:
            known = text.embed(range(text.vocabulary)).any(dim=1)
            vocabulary = known.nonzero().squeeze(1).tolist()
        if not vocabulary:
            raise UserError("the text tower knows no word to write a prompt with")
        print(f"Prompts are {c.N_WORDS} of {len(vocabulary):,} tokens; search: {c.SEARCH}")
        rewards = c.RIGHT, c.WRONG, c.REWARD_SCALE
        search = Search(c.SEARCH, c.N_WORDS, c.PROMPTS, c.TOP_K, *rewards, c.POLYAK)
        return cls(encoders, classes, Policy(text.width, c.HIDDEN), vocabulary, search)

    # The prompt that is kept.

    @property
    def template(self) -> str:
        """The kept prompt as a template, with one {}."""
        return f"{self.encoders.text.decode(self.prompt.tolist())} {{}}."

    def encode_text(self) -> torch.Tensor:
        """(C,D), of the kept prompt."""
        text = self.encoders.text
        with torch.no_grad():
            return text(text.layout(self.classes.names, 0, words=self.prompt.tolist()))

    def text_features(self) -> torch.Tensor:
        """`encode_text`, computed once for as long as the prompt stays."""
        if self._text_cache is None or self._text_cache[0][0] is not self.prompt:
            self._text_cache = ((self.prompt,), self.encode_text())
        return self._text_cache[1]

    def keep_best(self, ids: torch.Tensor, reward: torch.Tensor) -> None:
        """Keep the best of these prompts (P,K) by reward (P,), if it beats the one kept."""
        best = reward.argmax()
        if reward[best] > self.reward:
            self.prompt, self.reward = ids[best].clone(), reward[best].to(self.reward).clone()

    # Training.

    def before_epoch(self, epoch: int, epochs: int) -> None:
        """A random search has no use for a policy; what was found so far is printed."""
        self.policy.requires_grad_(self.search.kind == "policy")
        if self.reward.isfinite():
            print(f"Prompt so far: {self.template} (reward {self.reward.item():.2f})")

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """A step's "uniform" (P,K), which says which words are taken."""
        size, device = (self.search.prompts, self.search.words), self.table.device
        return {"uniform": torch.rand(size, generator=generator, device=device)}

    def features(
        self, image: torch.Tensor, uniform: torch.Tensor | None = None, **known: torch.Tensor
    ) -> Features:
        """As the contract's; in training with P prompts of `uniform` (P,K), see the class."""
        features = Features(self.encode_image(image), self.text_features())
        if self.training:
            if uniform is None:
                uniform = self.drawn(None, 1.0)["uniform"]
            with torch.autocast(uniform.device.type, enabled=False):
                features.more.update(self.write(uniform))
            with torch.no_grad():
                ctx = self.encoders.text.token_embedding(features.more["ids"]).unsqueeze(1)
                features.more["texts"] = self.encoders.text(self.layout, ctx)
        return features

    def write(self, uniform: torch.Tensor) -> dict[str, torch.Tensor]:
        """Prompts by `uniform` (P,K): their "ids", of a policy also what `soft_q_loss` takes."""
        if self.search.kind == "random":
            places = (uniform * len(self.vocabulary)).long().clamp(max=len(self.vocabulary) - 1)
            return {"ids": self.vocabulary[places]}
        ctx = self.table.new_zeros(*uniform.shape, self.table.shape[1])
        each: dict[str, list[torch.Tensor]] = {n: [] for n in ("ids", "taken", "value", "target")}
        for k in range(uniform.shape[1]):
            state = self.states(ctx)[:, k]
            logits = self.policy(state) @ self.table.t()
            with torch.no_grad():
                each["target"].append((self.target(state) @ self.table.t()).logsumexp(dim=1))
            words = self.choose(logits.detach(), uniform[:, k])
            each["ids"].append(self.vocabulary[words])
            each["taken"].append(logits.gather(1, words[:, None]).squeeze(1))
            each["value"].append(logits.logsumexp(dim=1))
            ctx[:, k] = self.table[words]
        return {name: torch.stack(values, dim=1) for name, values in each.items()}

    @torch.no_grad()
    def states(self, ctx: torch.Tensor) -> torch.Tensor:
        """(P,K,d_t), h behind [SOS] and each word but the last of ctx (P,K,d_t)."""
        reads = {"states": Read(at=slice(0, ctx.shape[1]))}
        found = self.encoders.text(self.alone, ctx.unsqueeze(1), reads=reads)
        return found["states"].squeeze(1).to(self.table)

    def choose(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """Of (P,V) logits a word (P,) each, of the likeliest, by `uniform` (P,) within [0,1)."""
        number = min(self.search.top_k or logits.shape[1], logits.shape[1])
        values, words = logits.topk(number, dim=1)
        shares = values.softmax(dim=1).cumsum(dim=1)
        place = (shares <= uniform[:, None]).sum(dim=1).clamp(max=number - 1)
        return words.gather(1, place[:, None]).squeeze(1)

    @torch.no_grad()
    def rewards(self, features: Features, label: torch.Tensor) -> torch.Tensor:
        """(P,): of each prompt drawn, on these images; not a z-score yet."""
        s, tau = self.search, self.encoders.temperature
        each = (cosine_logits(features.image, text, tau) for text in features.more["texts"])
        return torch.stack([gap_reward(z.softmax(dim=1), label, s.right, s.wrong) for z in each])

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """The policy's "soft_q"; of a random search minus the mean "reward", which has no gradient.

        label: (B,). Rewards (P,) may be at hand as "rewards".
        """
        more = features.more
        reward = more["rewards"] if "rewards" in more else self.rewards(features, label)
        if self.search.kind == "random":
            return {"reward": -reward.mean()}
        deviation = reward.std(correction=0) + EPSILON
        shaped = self.search.scale * (reward - reward.mean()) / deviation
        return {"soft_q": soft_q_loss(more["taken"], more["value"], more["target"], shaped)}

    def own_step(self, batch: dict[str, torch.Tensor], own: OwnStep) -> dict[str, torch.Tensor]:
        """One step of the search on all training images, whatever the batch's."""
        inputs = dict(batch)
        image, label = inputs.pop("image"), inputs.pop("label")
        if self.images is not None:
            image, label = self.images
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.policy.parameters(), strict=True):
                slow.lerp_(fast, self.search.polyak)
        with own.losses_of.autocast():
            features = self.features(image, **inputs)
        features.more["rewards"] = self.rewards(features, label)
        self.keep_best(features.more["ids"], features.more["rewards"])
        losses = self.losses(features, label)
        if self.search.kind == "policy":
            own.zero_grad()
            own.backward(losses["soft_q"])
            own.update()
        return losses


@TRAINER_REGISTRY.register()
class RLPrompt(PromptTrainer):
    """A prompt of words found by reinforcement learning, after RLPrompt; adaptation: ours."""

    method_class = RLPromptMethod
    config_node = "RLPROMPT"
    claim = Claim(
        "a policy finds better words than a random search of as many prompts",
        (Row("RLPrompt", "RLPrompt"),),
        (
            Row("RLPrompt, random", "RLPrompt", {"TRAINER.RLPROMPT.SEARCH": "random"}),
            Row("zero-shot", "ZeroshotCLIP"),
            FROM_WORDS,
        ),
    )
    method: RLPromptMethod

    def before_train(self) -> None:
        """As every trainer's; the method gets the training images, also where a run goes on."""
        super().before_train()
        data = self.training_data()
        with torch.no_grad():
            self.method.images = data.features(), data.labels

    def model_update(self, names: str | list[str] | None = None) -> None:
        """As every trainer's, after clipping the gradient over all that is trained."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        norm = self.method_cfg(self.cfg).CLIP_NORM
        clip_gradients(optims, self.scaler, self.method.trained().values(), norm)
        super().model_update(names)

    def after_train(self) -> None:
        """As every trainer's; the prompt is written to prompt.txt."""
        method = self.method
        print(f"Prompt: {method.template} (reward {method.reward.item():.2f})")
        ids = method.prompt.tolist()
        if method.encoders.text.token_ids(method.encoders.text.decode(ids)) != ids:
            print("As a text it has other tokens: ZeroshotCLIP would test another prompt")
        with atomic_write(Path(self.output_dir) / "prompt.txt") as file:
            file.write(f"{method.template}\n")
        super().after_train()

    def result_extra(self) -> dict:
        """As every trainer's, and the prompt."""
        return {**super().result_extra(), "prompt": self.method.template}

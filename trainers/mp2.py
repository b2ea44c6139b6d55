"""MP2 on CLIP, after Multi-task Pre-training of Modular Prompts (ACL 2023, arXiv 2210.07565).

Adaptation: ours. The paper tunes CPT on Chinese text; its released code has this arithmetic. No
published result on CLIP exists. A library of K modules, each of M tokens, is trained on many tasks,
here data sets, with a router's row ρ_t ∈ R^K for each:

    module k   z_k A,   z_k ∈ R^r,   A ∈ R^{r×M d_t}
    gates      g = σ((ln u − ln(1 − u) + ρ_t) / T), u uniform in each step (a relaxed Bernoulli
               sample); at test g = σ(ρ_t);  then ĝ = g / (Σ_k g_k + 10⁻¹²)
    context    words + Σ_k ĝ_k z_k A

It is added to the embeddings of "a photo of a", so that g = 0 is the hand-written prompt. Uniform
starts, z and ρ within ±10⁻³, A within ±1/√(M d_t), keep it near that. The loss is cross entropy.

1. The library: one run over several data sets, `DATASET.FURTHER`; a step takes a batch of one.
2. Downstream, `MODEL.INIT_WEIGHTS` that run's checkpoint, `FACTORED False`: the products z_k A are
   free parameters, the router starts anew. Phase 1 trains the router alone for `ROUTER_EPOCHS`
   epochs, phase 2 what `THEN` says.

The paper has 38 tasks drawn by chance, 50 tokens after [CLS], r = 300 and constant rates; ours are
turns, 4 tokens, r = 64 and the run's schedule. What other methods don't have: labeled images of
other data sets, which result.json says of both runs. Its control is CoOp, trained on the same data
sets by the same command and then tuned.
"""

from __future__ import annotations

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from tuning.claims import Claim, Row
from tuning.method import Classes, Features, Method
from tuning.prompts import WORDS, public_words, resolve_words, starting_context
from tuning.trainer import PromptTrainer

from .coop import FROM_WORDS

THEN = ("prompts", "all", "router")


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.MP2 and the ranges of its values."""
    cfg.TRAINER.MP2 = CfgNode()
    cfg.TRAINER.MP2.N_CTX = 4  # M
    cfg.TRAINER.MP2.CTX_INIT = WORDS  # words that the modules are added to; they set M
    cfg.TRAINER.MP2.MODULES = 8  # K
    cfg.TRAINER.MP2.RANK = 64  # r
    cfg.TRAINER.MP2.FACTORED = True  # modules z_k A; False: free ones, started as such products
    cfg.TRAINER.MP2.TEMPERATURE = 1.0  # T
    cfg.TRAINER.MP2.ROUTER_EPOCHS = 0  # of phase 1
    cfg.TRAINER.MP2.THEN = "all"  # what phase 2 trains: prompts, all, router
    cfg.TRAINER.MP2.ROUTER_LR_MULT = 1.0  # learning rate of the router, in the modules'
    # The library's data set whose router row starts the run's, from 0; −1: it starts anew.
    cfg.TRAINER.MP2.START_TASK = -1
    cfg.TRAINER.MP2.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.MP2.CTX_INIT")
    declare_checks({f"TRAINER.MP2.{key}": whole(1) for key in ("N_CTX", "MODULES", "RANK")})
    declare_checks({"TRAINER.MP2.ROUTER_EPOCHS": whole(0), "TRAINER.MP2.START_TASK": whole(-1)})
    declare_checks(
        {"TRAINER.MP2.ROUTER_LR_MULT": real(0), "TRAINER.MP2.TEMPERATURE": real(above=0)}
    )


def uniform(bound: float, *shape: int) -> torch.Tensor:
    """Values within ±bound."""
    return torch.empty(shape).uniform_(-bound, bound)


class Library(nn.Module):
    """Called, it gives the modules (K,M,d_t). z: (K,r), a: (r,M d_t); free: products (K,M,d_t)."""

    def __init__(self, modules: int, rank: int, tokens: int, width: int, factored: bool) -> None:
        super().__init__()
        self.shape = modules, tokens, width
        z, a = uniform(1e-3, modules, rank), uniform((tokens * width) ** -0.5, rank, tokens * width)
        self.factored = factored
        if factored:
            self.z, self.a = nn.Parameter(z), nn.Parameter(a)
        else:
            self.products = nn.Parameter((z @ a).view(self.shape))

    def forward(self) -> torch.Tensor:
        """→ (K,M,d_t)."""
        return (self.z @ self.a).view(self.shape) if self.factored else self.products


class Router(nn.Module):
    """Called, it gives the gates ĝ (K,) of a task. rho: (T,K), a row for each task."""

    def __init__(self, tasks: int, modules: int, temperature: float) -> None:
        super().__init__()
        self.rho = nn.Parameter(uniform(1e-3, tasks, modules))
        self.temperature = temperature

    def forward(self, task: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        """→ ĝ (K,). noise: u (K,), within (0,1); None: no sample is drawn."""
        logits = self.rho[task]
        if noise is not None:
            logits = (noise.log() - (-noise).log1p() + logits) / self.temperature
        gates = logits.sigmoid()
        return gates / (gates.sum() + 1e-12)


class MP2Method(Method):
    """Text features of the prompts around the gated modules' sum, images as they are.

    Args:
        words: what it is added to, (M,d_t); frozen_words: token ids that follow it.
        router_epochs: of phase 1, the router alone; then: what the epochs after it train.
        start_task: see `TRAINER.MP2.START_TASK`.
    """

    trained_modules = ("library", "router")
    sees = ("other_data_sets",)
    data_set_bound = ("router.rho",)
    base: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        library: Library,
        router: Router,
        words: torch.Tensor,
        frozen_words: tuple[int, ...] = (),
        router_epochs: int = 0,
        then: str = "all",
        router_lr_mult: float = 1.0,
        start_task: int = -1,
    ) -> None:
        super().__init__(encoders, classes)
        check_choice("TRAINER.MP2.THEN", then, THEN)
        self.library = library
        self.router = router
        self.register_buffer("base", words, persistent=False)
        self.words = frozen_words
        self.router_epochs, self.then = router_epochs, then
        self.router_lr_mult, self.start_task = router_lr_mult, start_task
        self.layouts = nn.ModuleList(
            encoders.text.layout(own.names, len(words), words=frozen_words)
            for own in (classes, *classes.further)
        )

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """N_CTX becomes the number of words."""
        resolve_words(cfg.TRAINER.MP2)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> MP2Method:
        """From TRAINER.MP2 and the number of data sets.

        Raises:
            UserError: an unknown THEN, or prompts longer than the tower takes.
        """
        c, width = cfg.TRAINER.MP2, encoders.text.width
        start = starting_context(encoders, c.CTX_INIT, c.N_CTX)
        print(f"Modules are added to: {start.shown}")
        library = Library(c.MODULES, c.RANK, len(start.vectors), width, c.FACTORED)
        router = Router(1 + len(classes.further), c.MODULES, c.TEMPERATURE)
        if not c.FACTORED and not cfg.MODEL.INIT_WEIGHTS:
            print("No library (MODEL.INIT_WEIGHTS): unless a model is loaded, modules are random")
        options = c.ROUTER_EPOCHS, c.THEN, c.ROUTER_LR_MULT, c.START_TASK
        return cls(encoders, classes, library, router, start.vectors, start.words, *options)

    def before_epoch(self, epoch: int, epochs: int) -> None:
        """Let router or library rest, by the phase."""
        first = epoch < self.router_epochs
        self.router.requires_grad_(first or self.then != "prompts")
        self.library.requires_grad_(not first and self.then != "router")

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """A step's noise u (K,), within (0,1) as torch's relaxed Bernoulli has it."""
        rho = self.router.rho
        u = torch.rand(rho.shape[1], generator=generator, device=rho.device)
        least = torch.finfo(u.dtype).eps
        return {"noise": u.clamp(least, 1 - least)}

    def features(
        self,
        image: torch.Tensor,
        noise: torch.Tensor | None = None,
        dataset: torch.Tensor | None = None,
        **known: torch.Tensor,
    ) -> Features:
        """Image (B,3,I,I) → (B,D), (C,D); noise: u (K,); dataset: whose batch it is."""
        task = 0 if dataset is None else int(dataset)
        plain = noise is None and not task
        text = self.text_features() if plain else self.encode_task(task, noise)
        return Features(self.encode_image(image), text)

    def encode_task(self, task: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        """(C,D) of the classes of the run (0) or of a further data set, with its gates."""
        added = torch.einsum("k,kmd->md", self.router(task, noise), self.library())
        return self.encoders.text(self.layouts[task], self.base + added)

    def encode_text(self) -> torch.Tensor:
        """(C,D), of the run's own classes, without a sample."""
        return self.encode_task(0)

    def param_groups(self, lr: float) -> list[dict]:
        """The library at `lr`, the router at ROUTER_LR_MULT times that."""
        return [
            {"params": list(self.library.parameters()), "lr": lr},
            {"params": list(self.router.parameters()), "lr": lr * self.router_lr_mult},
        ]

    def as_start(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Products of a factored library, where this one's are free; a row of its router.

        Raises:
            UserError: a library of other sizes, or without the row that START_TASK names.
        """
        state, own, start = dict(state), self.library, self.start_task
        if not own.factored and {"library.z", "library.a"} <= set(state):
            z, a = state.pop("library.z"), state.pop("library.a")
            numbers = own.shape[1] * own.shape[2]
            if (len(z), a.shape[1]) != (own.shape[0], numbers):
                raise UserError(
                    f"the library has {len(z)} modules of {a.shape[1]} numbers, this run "
                    f"{own.shape[0]} of {numbers}: set TRAINER.MP2.MODULES and CTX_INIT as there"
                )
            state["library.products"] = (z @ a).view(own.shape)
            print(f"A library of {len(z)} modules: its products are free from here on")
        if start >= 0 and (rho := state.get("router.rho")) is not None:
            if start >= len(rho):
                raise UserError(
                    f"TRAINER.MP2.START_TASK is {start}; the library has data sets 0 to "
                    f"{len(rho) - 1}"
                )
            state["router.rho"] = rho[start : start + 1]
        return state


@TRAINER_REGISTRY.register()
class MP2(PromptTrainer):
    """Modular prompts, after MP2; adaptation: ours."""

    method_class = MP2Method
    config_node = "MP2"
    claim = Claim(
        "modules of other data sets, chosen by a router, help more than a prompt learned there",
        (Row("MP2", "MP2", library=True),),
        (
            Row("CoOp, pre-trained", "CoOp", {"TRAINER.COOP.N_CTX": "4"}, library=True),
            FROM_WORDS,
            Row("MP2, no library", "MP2"),
        ),
    )

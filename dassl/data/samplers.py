"""The order in which a loader takes the items of a data set: a function of (seed, epoch)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from dassl.config import CfgNode
from dassl.utils import Registry, UserError, resolve_seed

from .datasets import Datum

SAMPLER_REGISTRY = Registry("SAMPLER")


class EpochSampler(Sampler[int]):
    """Base of the samplers: `order` says which items, `set_epoch` which epoch it is.

    Args:
        data_source: the items.
        batch_size: items per batch.
        n_domain: domains per batch, 0 or less for all.
        n_ins: items per class and batch.
        seed: of the whole run.
    """

    def __init__(
        self,
        data_source: Sequence[Datum],
        batch_size: int = 1,
        n_domain: int = 0,
        n_ins: int = 1,
        seed: int = 0,
    ) -> None:
        self.data_source = data_source
        self.batch_size = batch_size
        self.n_domain = n_domain
        self.n_ins = n_ins
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass belongs to."""
        self.epoch = epoch

    def order(self, rng: random.Random) -> list[int]:
        """Return the indices of one pass, drawn with `rng`."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        # A string seed is hashed by its text: the same on every machine.
        return iter(self.order(random.Random(f"{self.seed} {self.epoch}")))

    def __len__(self) -> int:
        return len(list(iter(self)))


@SAMPLER_REGISTRY.register()
class SequentialSampler(EpochSampler):
    """All items as they come."""

    def order(self, rng: random.Random) -> list[int]:
        """Return 0, 1, …; nothing is drawn."""
        return list(range(len(self.data_source)))


@SAMPLER_REGISTRY.register()
class RandomSampler(EpochSampler):
    """All items, shuffled."""

    def order(self, rng: random.Random) -> list[int]:
        """Return a permutation of all indices."""
        return rng.sample(range(len(self.data_source)), len(self.data_source))


class _DomainSampler(EpochSampler):
    """Batches with equally many items of each of `n_domain` domains."""

    all_domains = False  # whatever n_domain says

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.groups = _indices_by(self.data_source, "domain")
        if self.all_domains or self.n_domain <= 0:
            self.n_domain = len(self.groups)
        name = type(self).__name__
        if self.n_domain > len(self.groups) or self.batch_size % self.n_domain:
            raise UserError(
                f"{name}: batches of {self.batch_size} cannot hold equal parts of {self.n_domain} "
                f"of the {len(self.groups)} domains; change BATCH_SIZE or N_DOMAIN"
            )
        self.per_domain = self.batch_size // self.n_domain
        if (smallest := min(map(len, self.groups.values()))) < self.per_domain:
            raise UserError(
                f"{name}: a domain has {smallest} images, fewer than the {self.per_domain} that "
                "each batch takes; lower BATCH_SIZE"
            )

    def domains(self, rng: random.Random) -> list[int]:
        """Return the domains of the next batch."""
        raise NotImplementedError

    def order(self, rng: random.Random) -> list[int]:
        """Return batch after batch until a chosen domain has too few items left."""
        left = {d: rng.sample(indices, len(indices)) for d, indices in self.groups.items()}
        order: list[int] = []
        while True:
            chosen = self.domains(rng)
            for domain in chosen:
                order += left[domain][: self.per_domain]
                del left[domain][: self.per_domain]
            if min(len(left[domain]) for domain in chosen) < self.per_domain:
                return order


@SAMPLER_REGISTRY.register()
class RandomDomainSampler(_DomainSampler):
    """Batches of equal parts of `n_domain` randomly chosen domains."""

    def domains(self, rng: random.Random) -> list[int]:
        """Draw `n_domain` different ones."""
        return rng.sample(list(self.groups), self.n_domain)


@SAMPLER_REGISTRY.register()
class SeqDomainSampler(_DomainSampler):
    """Batches of equal parts of all domains, in the order of their numbers."""

    all_domains = True

    def domains(self, rng: random.Random) -> list[int]:
        """Return all of them, ascending."""
        return sorted(self.groups)


@SAMPLER_REGISTRY.register()
class RandomClassSampler(EpochSampler):
    """Batches of `n_ins` items of each of batch_size // n_ins randomly chosen classes.

    A class with fewer items is filled up by drawing with replacement.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.groups = _indices_by(self.data_source, "label")
        self.n_classes = self.batch_size // self.n_ins
        if not 1 <= self.n_classes <= len(self.groups):
            raise UserError(
                f"RandomClassSampler: batches of {self.batch_size} with {self.n_ins} images per "
                f"class do not fit {len(self.groups)} classes; change BATCH_SIZE or N_INS"
            )

    def order(self, rng: random.Random) -> list[int]:
        """Return batch after batch until too few classes are left for one."""
        n = self.n_ins
        parts = {}
        for label, indices in self.groups.items():
            drawn = rng.sample(indices, len(indices))
            drawn += rng.choices(indices, k=max(n - len(indices), 0))
            parts[label] = [drawn[i : i + n] for i in range(0, len(drawn) - n + 1, n)]
        order: list[int] = []
        while len(parts) >= self.n_classes:
            for label in rng.sample(list(parts), self.n_classes):
                order += parts[label].pop()
                if not parts[label]:
                    del parts[label]
        return order


def _indices_by(data_source: Sequence[Datum], attribute: str) -> dict[int, list[int]]:
    groups = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[getattr(item, attribute)].append(index)
    return dict(groups)


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence[Datum] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
    seed: int | None = None,
) -> EpochSampler:
    """Return the sampler called `sampler_type`; `seed` defaults to `cfg.SEED`."""
    if seed is None:
        seed = resolve_seed(cfg.SEED) if cfg is not None else 0
    sampler = SAMPLER_REGISTRY.get(sampler_type)
    return sampler(data_source, batch_size, n_domain, n_ins, seed)

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dassl.config import get_cfg_default
from dassl.data.datasets import Datum
from dassl.data.samplers import SAMPLER_REGISTRY, build_sampler
from dassl.utils import UserError

SOURCE = [Datum(str(i), label=i % 5, domain=i % 3) for i in range(60)]


def batches(order: list[int], size: int) -> list[list[Datum]]:
    return [[SOURCE[i] for i in order[at : at + size]] for at in range(0, len(order), size)]


@pytest.mark.parametrize("name", SAMPLER_REGISTRY.registered_names())
def test_order_depends_on_seed_and_epoch_alone(name):
    def order(seed, epoch):
        sampler = build_sampler(name, data_source=SOURCE, batch_size=6, n_ins=2, seed=seed)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    state = random.getstate()
    assert order(1, 2) == order(1, 2)
    assert random.getstate() == state
    if name == "SequentialSampler":
        assert order(1, 0) == list(range(60))
    else:
        assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 11)}) == 6


def test_random_sampler_takes_each_once():
    assert sorted(build_sampler("RandomSampler", data_source=SOURCE, seed=0)) == list(range(60))


@given(seed=st.integers(0, 99), n_domain=st.sampled_from([0, 1, 2, 3]))
def test_domain_batches(seed, n_domain):
    sampler = build_sampler(
        "RandomDomainSampler", data_source=SOURCE, batch_size=6, n_domain=n_domain, seed=seed
    )
    order = list(sampler)
    assert len(set(order)) == len(order)
    for batch in batches(order, 6):
        counts = Counter(item.domain for item in batch)
        assert len(counts) == (n_domain or 3) and set(counts.values()) == {6 // (n_domain or 3)}


def test_sequential_domains():
    sampler = build_sampler("SeqDomainSampler", data_source=SOURCE, batch_size=6, seed=0)
    for batch in batches(list(sampler), 6):
        assert [item.domain for item in batch] == [0, 0, 1, 1, 2, 2]


@given(seed=st.integers(0, 99))
def test_class_batches(seed):
    sampler = build_sampler(
        "RandomClassSampler", data_source=SOURCE, batch_size=8, n_ins=4, seed=seed
    )
    order = list(sampler)
    assert len(set(order)) == len(order) in (48, 56)  # 5 classes of 3 parts, 2 a batch
    for batch in batches(order, 8):
        assert sorted(Counter(item.label for item in batch).values()) == [4, 4]


def test_small_classes_are_filled_up():
    few = [Datum(str(i), label=i % 2) for i in range(4)]
    sampler = build_sampler("RandomClassSampler", data_source=few, batch_size=6, n_ins=3, seed=0)
    assert sorted(Counter(i % 2 for i in sampler).values()) == [3, 3]


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("RandomSampeler", {}, "did you mean 'RandomSampler'"),
        ("RandomDomainSampler", {"batch_size": 7}, "equal parts of 3 of the 3 domains"),
        ("RandomDomainSampler", {"batch_size": 8, "n_domain": 4}, "of the 3 domains"),
        ("SeqDomainSampler", {"batch_size": 63}, "has 20 images, fewer than the 21"),
        ("RandomClassSampler", {"batch_size": 4, "n_ins": 8}, "do not fit 5 classes"),
        ("RandomClassSampler", {"batch_size": 12, "n_ins": 2}, "do not fit 5 classes"),
    ],
)
def test_mistakes(name, options, complaint):
    with pytest.raises(UserError, match=complaint):
        build_sampler(name, get_cfg_default(), SOURCE, **options)

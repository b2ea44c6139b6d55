from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dassl.config import get_cfg_default
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.utils import UserError


def items(*labels: int) -> list[Datum]:
    return [Datum(f"{i}.jpg", label, classname=f"c{label}") for i, label in enumerate(labels)]


def test_classes_come_from_the_training_images():
    train = [Datum("a", 1, classname="crane", class_key="n2"), Datum("b", 0, classname="crane")]
    dataset = DatasetBase(train_x=train, test=[train[0]])
    assert dataset.num_classes == 2
    assert dataset.lab2cname == {0: "crane", 1: "crane"}
    assert dataset.classnames == ["crane", "crane"] and dataset.class_keys == ["crane", "n2"]
    assert dataset.label_space == {"crane": "crane", "n2": "crane"}
    assert DatasetBase(test=train).num_classes == 2


@pytest.mark.parametrize(
    ("lists", "complaint"),
    [
        ({"train_x": items(0, 2)}, "no training image has label 1"),
        ({"train_x": items(0), "test": items(0, 1)}, "'c1' .label 1. is evaluated"),
        ({"train_x": [*items(0), Datum("x", 0, classname="d")]}, "label 0 has two classes"),
        ({}, "neither training nor test images"),
    ],
)
def test_inconsistent_lists(lists, complaint):
    with pytest.raises(UserError, match=complaint):
        DatasetBase(**lists)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    shots=st.integers(1, 6),
    seed=st.integers(0, 9),
    repeat=st.booleans(),
)
def test_draw_is_the_original_one(labels, shots, seed, repeat):
    """Labels as they first appear, `random.sample` each, small classes whole, lists in turn."""
    source = items(*labels)
    dataset = DatasetBase(test=items(0))
    random.seed(seed)
    drawn = dataset.generate_fewshot_dataset(source, source, num_shots=shots, repeat=repeat)
    random.seed(seed)
    for part in drawn:
        expected = []
        for label in dict.fromkeys(labels):
            group = [item for item in source if item.label == label]
            if len(group) >= shots:
                expected += random.sample(group, shots)
            else:
                expected += random.choices(group, k=shots) if repeat else group
        assert part == expected


def test_no_shots_means_everything():
    dataset = DatasetBase(test=items(0))
    source = items(0, 1)
    assert dataset.generate_fewshot_dataset(source) is source
    assert dataset.generate_fewshot_dataset(source, source) == [source, source]


def test_domains():
    dataset = DatasetBase(test=[Datum("a", 0, 1), Datum("b", 0, 0), Datum("c", 0, 1)])
    groups = dataset.split_dataset_by_domain(dataset.test)
    assert {d: [i.impath for i in g] for d, g in groups.items()} == {1: ["a", "c"], 0: ["b"]}
    dataset.domains = ("art", "photo")
    dataset.check_input_domains(["art"], ["photo"])
    with pytest.raises(UserError, match="no domain 'sketch'; it has art, photo"):
        dataset.check_input_domains(["art"], ["sketch"])


def test_unknown_name():
    cfg = get_cfg_default()
    cfg.DATASET.NAME = "ToyImage"
    with pytest.raises(UserError, match=r"unknown dataset 'ToyImage' \(did you mean 'ToyImages'"):
        build_dataset(cfg)

"""Which hand-written template a method reads on which data set."""

import pytest

import datasets  # noqa: F401 - registers the data sets
import trainers
from clip.open_clip_parts import selected_imagenet_templates
from dassl.config import get_cfg_default
from dassl.data.data_manager import template_of
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

trainers.modules()
SENTENCE = "a photo of a {}, a type of texture."
SHORT = "{} texture."


def read_by(trainer, dataset, *options):
    cfg = get_cfg_default()
    cfg.merge_from_list(list(options))
    name = TRAINER_REGISTRY.get(trainer).method_class.template_name
    return template_of(cfg, DATASET_REGISTRY.get(dataset), name)


@pytest.mark.parametrize(
    ("trainer", "template"),
    [
        ("ZeroshotCLIP", SHORT),
        ("ZeroshotCLIP2", SHORT),
        ("CLIPAdapter", SHORT),
        ("DePT_CLIPAdapter", SHORT),
        ("KgCoOp", SENTENCE),
        ("DePT_KgCoOp", SENTENCE),
        ("CoOp", SENTENCE),
        ("DePT_MaPLe", SENTENCE),
    ],
)
def test_textures_have_two(trainer, template):
    assert read_by(trainer, "DescribableTextures") == template
    assert read_by(trainer, "DescribableTextures", "DATASET.TEMPLATE", "my {}.") == "my {}."


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CLIPAdapter", "KgCoOp"])
def test_other_data_sets_have_one(trainer):
    assert read_by(trainer, "OxfordPets") == "a photo of a {}, a type of pet."
    assert read_by(trainer, "ImageNet") == "a photo of a {}."


def test_a_method_gets_the_template_it_asks_for(make_trainer, monkeypatch):
    reader = DATASET_REGISTRY.get("ImageFolder")
    monkeypatch.setattr(reader, "other_templates", {"zeroshot": "{} here."})
    for trainer, template in (("CLIPAdapter", "{} here."), ("KgCoOp", reader.template)):
        assert make_trainer(trainer).method.classes.template == template


SEVEN = {
    *("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."),
    *("a {} in a video game.", "art of the {}.", "a photo of the small {}."),
}


def test_the_seven_selected_templates():
    assert set(selected_imagenet_templates()) == SEVEN


def test_only_imagenet_itself_adds_nothing_to_an_ensemble():
    known = DATASET_REGISTRY.registered_names()
    assert [n for n in known if not DATASET_REGISTRY.get(n).template_joins_ensembles] == [
        "ImageNet"
    ]


@pytest.mark.parametrize(
    ("joins", "options", "added"),
    [
        (True, {}, {"a photo of a {}."}),
        (False, {}, set()),
        (False, {"DATASET__TEMPLATE": "my {}."}, {"my {}."}),
    ],
)
def test_an_ensemble_is_the_seven_and_the_data_sets_own(
    make_trainer, monkeypatch, joins, options, added
):
    reader = DATASET_REGISTRY.get("ImageFolder")
    monkeypatch.setattr(reader, "template_joins_ensembles", joins)
    templates = make_trainer("ZeroshotCLIP2", **options).method.templates
    assert set(templates) == SEVEN | added and len(templates) == 7 + len(added)

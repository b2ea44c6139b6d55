"""RobustPrompt: its score in fp64 by the formulas at the head of its file, and its search."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

import train
from clip import tokenize
from clip.clip import load_model
from clip.prompting import Encoders
from dassl.config.severities import CORRUPTIONS
from dassl.data.corruptions import Corrupt, misspelt
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, read_image
from trainers.robustprompt import RobustPrompt, Search, Views
from tuning.method import unit
from tuning.options import parse_args, setup_cfg

NAMES = ["ant", "brown bear", "cat", "desert fox", "eel"]
TEMPLATE = "art of the {}."
SMALL = {
    "TRAINER__ROBUSTPROMPT__POPULATION": 6,
    "TRAINER__ROBUSTPROMPT__KEEP": 2,
    "TRAINER__ROBUSTPROMPT__ROUNDS": 2,
    "DATASET__TEMPLATE": TEMPLATE,
}


@pytest.fixture
def exact(make_trainer):
    """The method and CLIP in fp64."""
    trainer = make_trainer("RobustPrompt", **SMALL)
    clip = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
    method = RobustPrompt.build_method(trainer.cfg, Encoders(clip), trainer.method.classes)
    return method.double().freeze(), clip


def text_of(clip, template, names=NAMES):
    with torch.no_grad():
        return clip.encode_text(tokenize([template.replace("{}", name) for name in names]))


def test_it_starts_as_the_data_sets_template(exact):
    method, clip = exact
    image, label = torch.randn(4, 32).double(), torch.tensor([0, 3, 3, 1])
    logits = clip.logit_scale.exp() * unit(image) @ unit(text_of(clip, TEMPLATE)).t()
    losses = method.losses(method.features(image), label)
    assert set(losses) == {"itm"} and not method.trained()
    assert losses["itm"].item() == pytest.approx(F.cross_entropy(logits, label).item(), rel=1e-10)


def test_the_score_by_hand(exact):
    method, clip = exact
    torch.manual_seed(0)
    views, label = unit(torch.randn(3, 4, 32).double()), torch.tensor([0, 3, 3, 1])
    accepted = torch.tensor([[True] * 4, [True, False, True, False], [False, True, True, False]])
    typos = ["ant", "brwon bear", "cta", "desert fox", "eeel"]
    template = "a red {} near it."

    def margin(view, names, y):
        text = unit(text_of(clip, template, names))
        p = (clip.logit_scale.exp() * text @ view).softmax(0).tolist()
        return p[y] - max(p[c] for c in range(5) if c != y)

    for names in ([], typos):
        total = 0.0
        for i, y in enumerate(label.tolist()):
            each = [margin(views[r, i], NAMES, y) for r in range(3) if accepted[r, i]]
            total += min(each + ([margin(views[0, i], names, y)] if names else []))
        found = method.score(template, Views(views, accepted, label), names)
        assert found == pytest.approx(total / 4, rel=1e-10)


def test_views_and_typos_that_count(make_trainer):
    trainer = make_trainer("RobustPrompt", TRAINER__ROBUSTPROMPT__CORRUPTIONS="('blur', 'typos')")
    data, method = trainer.training_data(), trainer.method
    with torch.no_grad():
        views = method._views(data)
        images = [read_image(item.impath) for item in data.dataset.train_x]
        for row, corrupt in enumerate((None, Corrupt("blur", 3))):
            transform = build_transform(trainer.cfg, is_train=False, corrupt=corrupt)
            seen = torch.stack([transform(image) for image in images])
            features = unit(trainer.encode_views(seen))
            torch.testing.assert_close(views.features[row], features, rtol=1e-4, atol=1e-5)
        cosine = (views.features[1] * views.features[0]).sum(dim=1)
        settings = method.settings.clone()
        settings.defrost()
        method.settings = settings
        settings.MIN_COSINE = float(cosine.sort().values[3:5].mean())
        assert method._views(data).accepted[1].tolist() == (cosine > settings.MIN_COSINE).tolist()
        assert int(method._views(data).accepted.sum()) == 10 + 6
        settings.MIN_COSINE = -1.0
        assert method._misspelt() == misspelt(NAMES, 3) != NAMES
        settings.MIN_COSINE = 1.0
        assert method._misspelt() == NAMES


@pytest.mark.parametrize("search", ["evolution", "random"])
def test_a_run_finds_the_best_of_its_budget(command, make_trainer, tmp_path, capsys, search):
    """And it is saved, tested, and a template for others."""
    options = {**SMALL, "TRAINER__ROBUSTPROMPT__SEARCH": search}
    trainer = make_trainer("RobustPrompt", output=tmp_path / "again", **options)
    scored, method = {}, trainer.method
    score = method.score
    method.score = lambda t, *views: scored.setdefault(t, score(t, *views))
    trainer.before_train()
    assert len(scored) == 6 + 2 * 4 and TEMPLATE in list(scored)[0]
    assert method.prompt == max(scored, key=scored.get)
    train.main(command("RobustPrompt", **options))
    run = json.loads((tmp_path / "run" / "result.json").read_text())
    assert run["prompt"] == method.prompt  # the same seed, the same search
    assert f"Prompt: {method.prompt} (the best of 14 by {search} search)" in capsys.readouterr().out
    extra = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    train.main(command("RobustPrompt", *extra, output=tmp_path / "tested", **options))
    template = {"DATASET__TEMPLATE": method.prompt}
    train.main(command("ZeroshotCLIP", output=tmp_path / "other", **template))
    for folder in ("tested", "other"):
        other = json.loads((tmp_path / folder / "result.json").read_text())
        assert other["accuracy"] == run["accuracy"]


def test_seeds_together_are_as_apart(command, tmp_path):
    train.main(command("RobustPrompt", "--seed", "1", "2", output=tmp_path / "both", **SMALL))
    found = []
    for seed in ("1", "2"):
        train.main(command("RobustPrompt", "--seed", seed, output=tmp_path / seed, **SMALL))
        apart = json.loads((tmp_path / seed / "result.json").read_text())
        both = json.loads((tmp_path / "both" / f"seed{seed}" / "result.json").read_text())
        assert both["prompt"] == apart["prompt"] and both["accuracy"] == apart["accuracy"]
        found.append(apart["prompt"])
    assert found[0] != found[1]


def test_what_mutation_does():
    search = Search(len, [TEMPLATE, "a {}"], ["x", "y"], 5)
    found = {search.mutated(TEMPLATE) for _ in range(300)}
    assert all(prompt.count("{}") == 1 and len(prompt.split()) <= 5 for prompt in found)
    assert {TEMPLATE, "a {}", "of the {}.", "art y the {}.", "art of the {}. x"} <= found
    # A template, 3 words × 2 replaced, 3 left out, 5 places × 2 put in; "{}" itself stays.
    assert len(found) == 2 + 6 + 3 + 10
    full = {search.mutated("a b c d {}") for _ in range(200)}
    assert max(len(prompt.split()) for prompt in full) == 5
    bare = {search.mutated("{}") for _ in range(100)}
    assert bare == {TEMPLATE, "a {}", "x {}", "{} x", "y {}", "{} y"}
    redrawn = {search.redrawn(TEMPLATE) for _ in range(200)}
    assert len(redrawn) == 8 and all(prompt.endswith(" {}.") for prompt in redrawn)


def test_the_best_stay_and_are_built_on():
    """By the number of one word, which no template has."""
    search = Search(lambda t: t.split().count("x"), ["{}", "a {}"], ["x", "y"], 30)
    search.evolve(population=8, keep=2, rounds=20)
    assert len(search.scores) == 2 + 20 * 6  # there were two templates to start from
    assert search.scores[search.best()[0]] >= 10
    assert search.best(3)[0] == search.best()[0]
    with pytest.raises(IndexError):
        Search(len, [], [], 5).evolve(2, 1, 1)


def test_words_are_tokens(make_trainer):
    text = make_trainer("RobustPrompt", **SMALL).method.encoders.text
    words = text.words()
    assert len(words) == 32875 and {"photo", "a", "of"} < set(words)
    assert all(len(text.token_ids(word)) == 1 for word in words)
    # The towers are shared by all that are alive: another one is changed.
    other = copy.deepcopy(text)
    with torch.no_grad():
        other.token_embedding.weight[text.token_ids("photo")] = 0
    assert set(words) - set(other.words()) == {"photo"} and set(words) == set(text.words())


@pytest.mark.parametrize(
    "options,message",
    [
        ({"SEARCH": "greedy"}, "SEARCH"),
        ({"CORRUPTIONS": "('fog',)"}, "CORRUPTIONS"),
        ({"KEEP": 17}, "KEEP is 17, of a POPULATION of 16"),
    ],
)
def test_settings_that_are_refused(make_trainer, options, message):
    with pytest.raises(UserError, match=message):
        options = {f"TRAINER__ROBUSTPROMPT__{key}": value for key, value in options.items()}
        make_trainer("RobustPrompt", **options)


def test_a_prompt_without_room(make_trainer):
    method = make_trainer("RobustPrompt", **SMALL).method
    with pytest.raises(UserError, match="a prompt of 1202 bytes is longer than 1024"):
        method.prompt = "x" * 1200 + "{}"


@pytest.mark.parametrize("name", ["RobustPrompt", "ZeroshotCLIP"])
def test_depts_twin_is_refused_with_the_reason(name):
    with pytest.raises(UserError, match=f"{name} declares no loss that fits the labels"):
        TRAINER_REGISTRY.get(f"DePT_{name}")


def test_the_budget_of_the_tables():
    words = "--trainer RobustPrompt --config-file configs/trainers/RobustPrompt/vit_b16_ep10.yaml"
    c = setup_cfg(parse_args(words.split())).TRAINER.ROBUSTPROMPT
    assert (c.POPULATION, c.KEEP, c.ROUNDS, c.SEVERITY, c.MIN_COSINE) == (16, 4, 5, 3, 0.8)
    assert c.SEARCH == "evolution" and tuple(c.CORRUPTIONS) == CORRUPTIONS

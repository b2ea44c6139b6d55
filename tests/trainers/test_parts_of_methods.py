"""What the equations leave open: starts, modes, switches, averages, against values of our own."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

import train
import trainers
from clip import tokenize
from clip.clip import load_state_dict
from clip.model import build_model
from clip.prompting import Encoders
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import UserError, set_random_seed
from tests.conftest import arguments, tiny_clip
from tests.registered import some_twins, trains
from trainers.promptsrc import gaussian_weights
from trainers.zsclip import ZeroshotCLIP, ZeroshotCLIP2
from tuning.loading import resolve_precision
from tuning.method import Classes, Features, cosine_logits, unit
from tuning.options import parse_args, setup_cfg
from tuning.prompts import check_depth, stacked, starting_context
from tuning.saved import rows_of

trainers.modules()
ALL = sorted(n for n in TRAINER_REGISTRY.registered_names() if not n.startswith("Elsewhere"))
TRAINED = [name for name in ALL if trains(name)]

# --- PromptSRC's Gaussian aggregation -----------------------------------------------------------


@pytest.mark.parametrize(
    "epochs,mean,std,shares",
    [
        # exp(−(e − μ)² / 2σ²) for e = 1, 2, …, before they are divided by their sum.
        (4, 2.0, 1.0, [math.exp(-0.5), 1, math.exp(-0.5), math.exp(-2)]),
        (3, 1.0, 2.0, [1, math.exp(-1 / 8), math.exp(-1 / 2)]),
        (2, 100.0, 1.0, [math.exp(-(99**2 - 98**2) / 2), 1]),  # far off: no division by zero
        (1, 15.0, 1.0, [1]),
    ],
)
def test_gaussian_weights_by_hand(epochs, mean, std, shares):
    expected = [share / sum(shares) for share in shares]
    assert gaussian_weights(epochs, mean, std) == pytest.approx(expected, rel=1e-12)
    assert sum(gaussian_weights(epochs, mean, std)) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("name", ["PromptSRC", "DePT_PromptSRC"])
def test_the_final_model_is_the_weighted_mean_of_all_epochs(make_trainer, name):
    """Weights that differ for each epoch, none of them negligible."""
    options = {"TRAINER__PROMPTSRC__GPA_MEAN": 2.0, "TRAINER__PROMPTSRC__GPA_STD": 1.5}
    trainer = make_trainer(name, OPTIM__MAX_EPOCH=3, **options)
    seen = []
    real = trainer.after_epoch

    def after_epoch():
        seen.append(trainer.method.trained_state())
        real()

    trainer.after_epoch = after_epoch
    trainer.train()
    shares = [math.exp(-((e - 2) ** 2) / 4.5) for e in (1, 2, 3)]
    for key, value in trainer.method.trained_state().items():
        mean = sum(w * state[key] for w, state in zip(shares, seen, strict=True)) / sum(shares)
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, seen[-1][key])


# --- Modes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", some_twins(ALL))
def test_towers_stay_in_eval_mode_while_training(make_trainer, name):
    trainer = make_trainer(name)
    method, seen = trainer.method, []
    real = method.features

    def features(*images, **known):
        modes = {part.training for part in method.encoders.modules()}
        seen.append((modes, method.training, torch.is_grad_enabled()))
        return real(*images, **known)

    method.features = features
    trainer.train()
    assert seen and all(modes == {False} for modes, *_ in seen)
    # The method itself trains where there are gradients, and not where it is tested.
    assert all(training == grad for _, training, grad in seen)
    assert {grad for *_, grad in seen} == ({True, False} if name in TRAINED else {False})


def test_a_resnets_statistics_do_not_move(picture_root, tmp_path):
    sizes = {"vision_layers": (1, 1, 1, 1), "vision_patch_size": None, "embed_dim": 64}
    file = tmp_path / "rn.pt"
    torch.save(tiny_clip(**sizes, image_resolution=64).state_dict(), file)
    options = {"INPUT.SIZE": "(64, 64)", "OPTIM.MAX_EPOCH": 2, "MODEL.FAST": False}
    for name in ("DePT_CoOp", "CoCoOp", "CLIPAdapter"):
        words = arguments(name, picture_root, file, tmp_path / name, **options)
        cfg = setup_cfg(parse_args(words))
        set_random_seed(1)
        trainer = build_trainer(cfg)
        visual = trainer.method.encoders.image.visual
        before = {key: value.clone() for key, value in visual.state_dict().items()}
        assert any("running_mean" in key for key in before)
        trainer.train()
        for key, value in visual.state_dict().items():
            assert torch.equal(value, before[key]), f"{name}: {key} moved"


# --- Zero-shot ----------------------------------------------------------------------------------

SEVEN = [
    *("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."),
    *("a {} in a video game.", "art of the {}.", "a photo of the small {}."),
]
SATELLITE = "a centered satellite photo of {}."


def test_zero_shot_templates_and_their_mean(make_trainer, backbone):
    names = ["Annual Crop Land", "sea_or_lake"]
    clip = build_model(load_state_dict(backbone)).float()

    def text_of(template):
        texts = [template.format(name.replace("_", " ")) for name in names]
        with torch.no_grad():
            return clip.encode_text(tokenize(texts))

    classes = Classes(names, ["1", "2"], SATELLITE)
    trainer = make_trainer("ZeroshotCLIP")
    encoders = trainer.method.encoders
    one = ZeroshotCLIP.build_method(trainer.cfg, encoders, classes).text_features()
    torch.testing.assert_close(one, text_of(SATELLITE), rtol=1e-4, atol=1e-4)
    several = ZeroshotCLIP2.build_method(trainer.cfg, encoders, classes)
    with torch.no_grad():
        found = several.text_features()
    parts = [text_of(template) for template in (*SEVEN, SATELLITE)]
    expected = torch.stack([p / p.norm(dim=-1, keepdim=True) for p in parts]).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    image = torch.randn(3, 32)
    logits = several.logits(Features(image, found))
    ensemble = expected / expected.norm(dim=-1, keepdim=True)
    tau = clip.logit_scale.exp()
    torch.testing.assert_close(
        logits, tau * F.normalize(image) @ ensemble.t(), rtol=1e-3, atol=1e-4
    )
    # Where the data set's own doesn't join, as on ImageNet, there are the seven.
    seven = Classes(names, ["1", "2"], SATELLITE, template_joins_ensembles=False)
    assert ZeroshotCLIP2.build_method(trainer.cfg, encoders, seven).templates == SEVEN


@pytest.mark.parametrize(
    "name,attribute",
    [
        ("KgCoOp", "frozen_text"),
        ("CLIPAdapter", "frozen_text"),
        ("ZeroshotCLIP", None),
    ],
)
def test_the_data_sets_template_is_used(make_trainer, backbone, name, attribute):
    method = make_trainer(name, DATASET__TEMPLATE="a drawing of {}, inked.").method
    clip = build_model(load_state_dict(backbone)).float()
    texts = [f"a drawing of {n.replace('_', ' ')}, inked." for n in method.classes.names]
    with torch.no_grad():
        expected = clip.encode_text(tokenize(texts))
        found = getattr(method, attribute) if attribute else method.text_features()
    torch.testing.assert_close(F.normalize(found), F.normalize(expected), rtol=1e-4, atol=1e-4)


def test_sentences():
    classes = Classes(["brown_bear", "cat"], ["1", "2"], "art of {}.")
    assert classes.sentences() == ["art of brown bear.", "art of cat."]
    assert classes.sentences("{} up") == ["brown bear up", "cat up"]
    assert Classes([], []).template == "a photo of a {}."


# --- Starting contexts --------------------------------------------------------------------------

# "a photo of a" is 320 1125 539 320, "an x-ray of" 550 343 268 3077 539.
STARTS = [
    ("a photo of a", 16, None, [320, 1125, 539, 320], ()),
    ("a_photo_of_a ", 16, None, [320, 1125, 539, 320], ()),
    ("a photo of a", 16, 2, [320, 1125], (539, 320)),
    ("a photo of a", 16, 4, [320, 1125, 539, 320], ()),
    ("an x-ray of", 16, None, [550, 343, 268], (3077, 539)),
    ("a photo of a", 16, 5, 5, ()),  # more vectors than tokens
    ("", 16, None, 16, ()),
    ("", 16, 3, 3, ()),
]


@pytest.mark.parametrize("text,n_ctx,vectors,expected,rest", STARTS)
def test_starting_contexts(capsys, text, n_ctx, vectors, expected, rest):
    encoders = Encoders(tiny_clip())
    start = starting_context(encoders, text, n_ctx, vectors)
    assert start.words == rest and start.vectors.dtype == torch.float32
    said = capsys.readouterr().out
    if isinstance(expected, list):
        words = encoders.text.token_embedding.weight[expected]
        torch.testing.assert_close(start.vectors, words, rtol=0, atol=0)
        plain = text.replace("_", " ").strip()
        beyond = f" (vectors for the first {len(expected)} tokens, the others stay)"
        assert start.shown == f'"{plain}"{beyond if rest else ""}' and not said
    else:
        assert start.vectors.shape == (expected, 64)
        assert start.shown == f'"{" ".join("X" * expected)}"'
        assert bool(said) == bool(text)


def test_depths():
    for depth in (1, 3):
        check_depth("KEY", depth, 3)
    for depth in (0, 4):
        with pytest.raises(UserError, match=f"KEY is {depth}; .* 3 layers: set 1 to 3"):
            check_depth("KEY", depth, 3)
    assert stacked([]) is None
    assert stacked([torch.zeros(2, 3)] * 4).shape == (4, 2, 3)


# --- Switches arrive ----------------------------------------------------------------------------

SWITCHES = [
    ("CoOp", "COOP__N_CTX", 7, lambda m: len(m.context.ctx)),
    ("CoOp", "COOP__CLASS_TOKEN_POSITION", "front", lambda m: {0: "front"}[m.layout.prefix_length]),
    ("KgCoOp", "COOP__W", 3.5, lambda m: m.weight),
    ("KgCoOp", "COOP__CLASS_TOKEN_POSITION", "front", lambda m: ["front"][m.layout.prefix_length]),
    ("CoCoOp", "COCOOP__CTX_INIT", "art of", lambda m: ["", "", "art of"][len(m.context.ctx)]),
    ("MaPLe", "MAPLE__N_CTX", 3, lambda m: len(m.prompts.ctx)),
    ("MaPLe", "MAPLE__PROMPT_DEPTH", 2, lambda m: len(m.prompts.projections)),
    ("VPT", "VPT__N_CTX_VISION", 5, lambda m: len(m.prompts["vision"].prompts)),
    ("VPT", "VPT__PROMPT_DEPTH_VISION", 1, lambda m: 1 + len(m.prompts["vision"].deep)),
    ("CLIP_LoRA", "CLIP_LORA__R", 3, lambda m: len(m.lora.layer_0["q_proj"].w_lora_A)),
    ("CLIP_LoRA", "CLIP_LORA__DROPOUT_RATE", 0.5, lambda m: m.dropout),
    ("MMA", "MMADAPTER__ADAPTER_START", 3, lambda m: m.image_layer() + 1),
    ("MMA", "MMADAPTER__ADAPTER_DIM", 5, lambda m: len(m.adapters.shared_adapter["3"][0].bias)),
    ("MMA", "MMADAPTER__ADAPTER_SCALE", 0.5, lambda m: m.scale),
    ("MMRL", "MMRL__ALPHA", 0.4, lambda m: m.alpha),
    ("MMRL", "MMRL__REG_WEIGHT", 7.0, lambda m: m.weight),
    ("MMRL", "MMRL__N_REP_TOKENS", 3, lambda m: len(m.learner.compound_rep_tokens)),
    ("MMRL", "MMRL__REP_DIM", 24, lambda m: m.learner.compound_rep_tokens.shape[1]),
    ("MMRL", "MMRL__REP_LAYERS", (1, 3), lambda m: m.layers),
    ("MMRLpp", "MMRLpp__BETA", 0.25, lambda m: 1 - m.keep),
    ("MMRLpp", "MMRLpp__RES_LORA_DIM", 2, lambda m: len(m.learner.srra_r2tproj.srra[0].B)),
    ("MMRLpp", "MMRLpp__PROJ_LORA_DIM", 6, lambda m: len(m.learner.B)),
    ("CLIPAdapter", "CLIP_ADAPTER__RATIO", 0.6, lambda m: m.ratio),
    ("CLIPAdapter", "CLIP_ADAPTER__REDUCTION", 2, lambda m: 32 // len(m.adapter.fc[0].weight)),
    ("PromptSRC", "PROMPTSRC__N_CTX_TEXT", 3, lambda m: len(m.prompts.ctx)),
    ("PromptSRC", "PROMPTSRC__N_CTX_VISION", 2, lambda m: len(m.prompts.vision.prompts)),
    ("PromptSRC", "PROMPTSRC__PROMPT_DEPTH_TEXT", 3, lambda m: 1 + len(m.prompts.deep)),
    ("PromptSRC", "PROMPTSRC__PROMPT_DEPTH_VISION", 2, lambda m: 1 + len(m.prompts.vision.deep)),
    ("PromptSRC", "PROMPTSRC__TEXT_LOSS_WEIGHT", 2.5, lambda m: m.text_weight),
    ("PromptSRC", "PROMPTSRC__IMAGE_LOSS_WEIGHT", 1.5, lambda m: m.image_weight),
    ("SPT", "VPT__N_CTX_VISION", 5, lambda m: len(m.prompts["vision"].prompts)),
    ("SPT", "SPT__INIT", "normal", lambda m: m.init),
    ("SPT", "SPT__IMAGES", 3, lambda m: m.most_images),
    ("IPT", "IPT__TOKENS", 5, lambda m: m.prompts.tokens),
    ("IPT", "IPT__HIDDEN", 7, lambda m: len(m.prompts.down.weight)),
    ("IPT", "IPT__LAYER", 2, lambda m: m.image_layer()),
    ("IPT", "IPT__PLACE", "add", lambda m: m.place),
    ("DePT_CoOp", "DEPT__WEIGHT", 0.4, lambda m: m.weight.item()),
    ("DePT_CoOp", "DEPT__LR_MULT", 3.0, lambda m: m.param_groups(1.0)[1]["lr"]),
    ("DePT_CoOp", "DEPT__FUSION", "prob", lambda m: m.fusion),
    ("DePT_CoOp", "DEPT__HEAD", "similarity", lambda m: m.cat.kind),
    ("DePT_CoOp", "DEPT__ROWS", "image", lambda m: m.cat.rows),
    (
        *("DePT_CoOp", "DEPT__CWT", "shared"),
        lambda m: "shared" if m.cat.cwt_text is m.cat.cwt_image else "",
    ),
]


@pytest.mark.parametrize("name,key,value,read", SWITCHES)
def test_switches_arrive(make_trainer, name, key, value, read):
    method = make_trainer(name, **{f"TRAINER__{key}": value}).method
    assert read(method) == value


def test_vpts_words(make_trainer, backbone):
    method = make_trainer("VPT", TRAINER__VPT__CTX_INIT="art_of").method
    clip = build_model(load_state_dict(backbone)).float()
    texts = [f"art of {n.replace('_', ' ')}." for n in method.classes.names]
    with torch.no_grad():
        expected = clip.encode_text(tokenize(texts))
    torch.testing.assert_close(method.frozen_text, expected, rtol=1e-4, atol=1e-4)


def test_the_adapters_share(make_trainer):
    """f' = α A(f) + (1 − α) f."""
    method = make_trainer("CLIPAdapter", TRAINER__CLIP_ADAPTER__RATIO=0.3).method.eval()
    f = torch.randn(4, 32)
    first, second = method.adapter.fc[0].weight, method.adapter.fc[2].weight
    adapted = F.relu(F.relu(f @ first.t()) @ second.t())
    with torch.no_grad():
        image = method.features(f).image
    torch.testing.assert_close(image, 0.3 * adapted + 0.7 * f)
    assert adapted.max() > 0  # the adapter says something


# Of methods whose groups have rates of their own.
RATES = {"LASP": (0.5, 0.05), "EPT": (0.5, 1.0), "LAMP": (0.5, 2.5)}
RATES |= dict.fromkeys(("MP2", "SkipT"), (0.5, 0.5))
RATES |= dict.fromkeys(("DPC_CoOp", "DPC_KgCoOp", "DPC_MaPLe", "DPC_PromptSRC"), (2.0,))


@pytest.mark.parametrize("name", TRAINED)
def test_the_optimizer_has_the_configs_numbers(make_trainer, name):
    trainer = make_trainer(name, OPTIM__LR=0.5, OPTIM__MOMENTUM=0.7, OPTIM__WEIGHT_DECAY=0.03)
    (optimizer,) = trainer._optims.values()
    assert isinstance(optimizer, torch.optim.SGD)
    rates = RATES.get(name.removeprefix("DePT_"), (0.5,))
    rates += (3.25,) if name.startswith("DePT_") else ()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        assert group["initial_lr"] == pytest.approx(rate)
        assert (group["momentum"], group["weight_decay"]) == (0.7, 0.03)
    trained = {id(p) for p in trainer.method.trained().values()}
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == trained


def test_rates_of_a_run(command, tmp_path):
    """As recorded: the warm-up's in every group, then the cosine's, the head's 6.5 times."""
    train.main(command("DePT_CoOp", OPTIM__MAX_EPOCH=3))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    assert rates[0] == [1e-5, 1e-5]
    assert rates[1] == pytest.approx([0.0035, 0.0035 * 6.5])
    assert rates[2] == pytest.approx([0.0035 * 0.75, 0.0035 * 6.5 * 0.75])


# --- Small parts --------------------------------------------------------------------------------


def test_cosine_logits_by_hand():
    image = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    text = torch.tensor([[5.0, 0.0], [0.0, 0.5]])
    expected = torch.tensor([[6.0, 8.0], [0.0, 10.0]])
    torch.testing.assert_close(cosine_logits(image, text, torch.tensor(10.0)), expected)
    own = torch.stack([text, text.flip(0)])  # (B,C,D)
    expected = torch.tensor([[6.0, 8.0], [10.0, 0.0]])
    torch.testing.assert_close(cosine_logits(image, own, torch.tensor(10.0)), expected)
    assert unit(torch.ones(2, 4, dtype=torch.float16)).dtype == torch.float32
    assert unit(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_rows_of():
    assert rows_of(["c", "a"], ["a", "b", "c"]) == [2, 0]
    assert rows_of(["c", "d"], ["a", "b", "c"]) is None
    assert rows_of([], ["a"]) == []


def test_precisions():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for wanted in ("fp32", "fp16", "bf16", "amp"):
        assert resolve_precision(wanted, gpu, "KEY") == wanted
        expected = wanted if wanted in ("fp32", "bf16") else "fp32"
        assert resolve_precision(wanted, cpu, "KEY") == expected
    with pytest.raises(UserError, match="KEY is 'fp8'; one of: fp32, fp16, bf16, amp"):
        resolve_precision("fp8", cpu, "KEY")


@pytest.mark.parametrize(
    "name,folder",
    [
        *((n, "prompt_learner") for n in ("CoOp", "KgCoOp", "CoCoOp", "VPT")),
        ("MaPLe", "MultiModalPromptLearner"),
        ("DePT_MaPLe", "MultiModalPromptLearner"),
        ("PromptSRC", "VLPromptLearner"),
        ("CLIPAdapter", "clip_adapter"),
        *((n, "PromptLearner") for n in ("DePT_CoOp", "DePT_KgCoOp", "DePT_CoCoOp")),
    ],
)
def test_the_models_folder_has_the_original_codes_name(name, folder):
    assert TRAINER_REGISTRY.get(name).model_name == folder


@pytest.mark.parametrize("name", ALL)
def test_which_methods_touch_the_image_tower(make_trainer, name):
    method = make_trainer(name).method
    bare = name.removeprefix("DePT_").removeprefix("DPC_")
    compares = ("PromptSRC", "ProMetaR", "MMRL", "MMRLpp")
    touched = (
        *compares,
        "CLIP_LoRA",
        "MMA",
        "MaPLe",
        "VPT",
        "LASP",
        "SPT",
        "IPT",
        "CoPrompt",
        "CoPromptTemplates",
        "PromptKD",
    )
    assert method.image_tower_untouched == (bare not in touched)
    # DPC leaves out those losses.
    assert method.compares_with_frozen_image == (bare in compares and "DPC_" not in name)

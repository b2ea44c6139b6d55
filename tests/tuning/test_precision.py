"""Half-precision towers: they train, and the fast path is as near to the exact one as the plain.

The trainers fall back to fp32 on a CPU; the methods themselves are run here in fp16 and bf16.
"""

from functools import cache

import pytest
import torch

from clip.model import build_model, convert_weights
from clip.prompting import Encoders
from dassl.engine import TRAINER_REGISTRY
from tests.conftest import OPTIONS, leave_zeros, tiny_clip
from tests.registered import every_trainer, some_twins, trains
from tuning import loading
from tuning.method import Classes
from tuning.options import parse_args, setup_cfg

# One that learns from another run isn't built without it.
LEARNERS = {n for n in every_trainer() if TRAINER_REGISTRY.get(n).method_class.teacher_key}
ALL = [name for name in some_twins(every_trainer()) if name not in LEARNERS]
# Rows that come of the training images have no gradient without them: test_contract.py has those.
GROWING = [n for n in ALL if trains(n) and not TRAINER_REGISTRY.get(n).method_class.image_bound]
NAMES = ["ant", "brown bear", "cat", "desert fox", "golden retriever", "lynx", "owl", "shire horse"]
IMAGES = 12


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("wanted", ["fp16", "amp"])
def test_a_cpu_with_bf16_says_so_where_fp16_was_asked(monkeypatch, capsys, has, wanted):
    monkeypatch.setattr(loading, "cpu_has_bf16", lambda: has)
    cpu = torch.device("cpu")
    assert loading.resolve_precision(wanted, cpu, "TRAINER.X.PREC") == "fp32"
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"TRAINER.X.PREC: {wanted} needs a GPU; running in fp32 on this CPU")
    assert ("TRAINER.X.PREC bf16 runs here" in said) == has
    assert loading.resolve_precision("bf16", cpu, "TRAINER.X.PREC") == "bf16"
    assert not capsys.readouterr().out


MODELS = 4  # one model's rounding is luck


@cache
def towers(dtype: torch.dtype, fast: bool, seed: int) -> Encoders:
    """Those of all methods: they are frozen, and sentences in them are encoded once."""
    # Widths as in real towers' proportion, so that rounding errors average out.
    model = build_model(
        tiny_clip(seed, transformer_width=128, transformer_heads=2).state_dict()
    ).float()
    if dtype == torch.float64:
        model.double()
    else:
        convert_weights(model, dtype)
    encoders = Encoders(model, fast)
    encode = cache(lambda sentences: type(encoders.text).encode(encoders.text, sentences))
    encoders.text.encode = lambda sentences: encode(tuple(sentences)).clone()
    return encoders


@pytest.fixture(scope="module", autouse=True)
def forget():
    yield
    towers.cache_clear()


def build(name: str, dtype: torch.dtype, fast: bool, seed: int = 0):
    words = ["--trainer", name, *(str(word) for pair in OPTIONS.items() for word in pair)]
    cfg = setup_cfg(parse_args(words))
    encoders = towers(dtype, fast, seed)
    torch.manual_seed(1)
    method = TRAINER_REGISTRY.get(name).build_method(cfg, encoders, Classes(NAMES, NAMES))
    # The half-precision towers stay so: what is trained is in fp32 from its start.
    return (method.double() if dtype == torch.float64 else method).freeze()


def batch(seed: int = 0):
    generator = torch.Generator().manual_seed(2 + seed)
    return torch.randn(IMAGES, 3, 32, 32, generator=generator), torch.arange(IMAGES) % len(NAMES)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_fast_path_is_as_exact_as_the_plain_one(name, dtype):
    squares = {True: 0.0, False: 0.0}
    for seed in range(MODELS):
        image, _ = batch(seed)
        exact_method = build(name, torch.float64, False, seed).eval()
        with torch.no_grad():
            exact = exact_method.logits(exact_method.features(image.double()))
            for fast in (True, False):
                method = build(name, dtype, fast, seed).eval()
                method.load_trained(exact_method.trained_state(), exact_method.classes.keys)
                logits = method.logits(method.features(image))
                assert logits.dtype == torch.float32
                squares[fast] += (logits.double() - exact).square().mean().item()
    # Half precision shows: a tower that was silently in fp32 would be a hundred times nearer.
    assert squares[False] > MODELS * 1e-5**2
    assert squares[True] <= 1.5**2 * squares[False]


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_gradients_arrive_in_fp32(name, dtype):
    image, label = batch()
    method = build(name, dtype, fast=True).train()
    leave_zeros(method)
    sum(method.losses(method.features(image), label).values()).backward()
    for key, parameter in method.trained().items():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, key
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, key

"""The numbers of every transform, as they arrive from the config, and what they do to a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform, usual
from dassl.data.transforms.transforms import (
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    Random2DTranslation,
)

BICUBIC = "bicubic"


def step(name: str, is_train: bool = True):
    """The step that a name stands for, with options unlike any default."""
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    node = cfg.INPUT
    node.SIZE, node.INTERPOLATION, node.TRANSFORMS = (24, 16), "bicubic", (name,)
    node.CROP_PADDING, node.RRCROP_SCALE = 3, (0.3, 0.9)
    node.CUTOUT_N, node.CUTOUT_LEN, node.GN_MEAN, node.GN_STD = 2, 6, 0.5, 0.25
    node.RANDAUGMENT_N, node.RANDAUGMENT_M = 3, 7
    node.COLORJITTER_B, node.COLORJITTER_C = 0.11, 0.12
    node.COLORJITTER_S, node.COLORJITTER_H = 0.13, 0.14
    node.RGS_P, node.GB_P, node.GB_K = 0.15, 0.16, 5
    node.PIXEL_MEAN, node.PIXEL_STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    steps = build_transform(cfg, is_train).transforms
    resized = name not in ("random_crop", "random_resized_crop")
    if is_train and resized:
        assert (steps[0].size, steps[0].interpolation) == ((24, 16), BICUBIC)
    (own,) = [s for s in steps[resized:] if not isinstance(s, usual.ToTensor)]
    return own


@pytest.mark.parametrize(
    ("name", "kind", "numbers"),
    [
        ("random_translation", Random2DTranslation, {"size": [24, 16], "p": 0.5}),
        ("random_translation", Random2DTranslation, {"interpolation": BICUBIC}),
        ("random_crop", T.RandomCrop, {"size": (24, 16), "padding": 3}),
        ("random_resized_crop", usual.RandomResizedCrop, {"size": (24, 16), "scale": (0.3, 0.9)}),
        ("random_resized_crop", usual.RandomResizedCrop, {"ratio": (3 / 4, 4 / 3)}),
        ("random_resized_crop", usual.RandomResizedCrop, {"interpolation": BICUBIC}),
        ("random_flip", usual.RandomHorizontalFlip, {"p": 0.5}),
        ("imagenet_policy", T.AutoAugment, {"policy": T.AutoAugmentPolicy.IMAGENET}),
        ("cifar10_policy", T.AutoAugment, {"policy": T.AutoAugmentPolicy.CIFAR10}),
        ("svhn_policy", T.AutoAugment, {"policy": T.AutoAugmentPolicy.SVHN}),
        ("randaugment", T.RandAugment, {"num_ops": 3, "magnitude": 7}),
        ("colorjitter", T.ColorJitter, {"brightness": (0.89, 1.11), "contrast": (0.88, 1.12)}),
        ("colorjitter", T.ColorJitter, {"saturation": (0.87, 1.13), "hue": (-0.14, 0.14)}),
        ("randomgrayscale", T.RandomGrayscale, {"p": 0.15}),
        ("gaussian_blur", T.RandomApply, {"p": 0.16}),
        ("cutout", Cutout, {"n_holes": 2, "length": 6}),
        ("normalize", usual.Normalize, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}),
        ("gaussian_noise", GaussianNoise, {"mean": 0.5, "std": 0.25, "p": 0.5}),
        ("instance_norm", InstanceNormalization, {"eps": 1e-8}),
    ],
)
def test_options_arrive(name, kind, numbers):
    own = step(name)
    assert type(own) is kind
    for key, value in numbers.items():
        found = getattr(own, key)
        if isinstance(value, tuple) and isinstance(value[0], float):
            assert found == pytest.approx(value), key
        else:
            assert found == value, key
    if name == "gaussian_blur":
        assert own.transforms[0].kernel_size == (5, 5)


def test_the_order_on_images_and_tensors():
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    names = [
        *("gaussian_noise", "gaussian_blur", "normalize", "randomgrayscale", "cutout"),
        *("random_flip", "randaugment", "random_resized_crop", "instance_norm", "colorjitter"),
        *("random_translation", "random_crop", "imagenet_policy"),
    ]
    cfg.INPUT.TRANSFORMS = names
    assert [type(s).__name__ for s in build_transform(cfg).transforms] == [
        *("Random2DTranslation", "RandomCrop", "RandomResizedCrop", "RandomHorizontalFlip"),
        *("AutoAugment", "RandAugment", "ColorJitter", "RandomGrayscale", "RandomApply"),
        *("ToTensor", "Cutout", "Normalize", "GaussianNoise", "InstanceNormalization"),
    ]
    test = build_transform(cfg, is_train=False).transforms
    assert [type(s).__name__ for s in test] == [
        *("Resize", "CenterCrop", "ToTensor", "Normalize", "InstanceNormalization"),
    ]
    assert test[0].size == 224 and test[1].size == (224, 224)


def test_the_test_view_is_clips_own():
    """Shorter side to the size, bicubic, centre, normalized."""
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (16, 16), "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    found = build_transform(cfg, is_train=False)(Image.fromarray(pixels))
    resized = Image.fromarray(pixels).resize((24, 16), Image.Resampling.BICUBIC)
    cut = torch.from_numpy(np.array(resized)[:, 4:20]).permute(2, 0, 1) / 255
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(found, (cut - mean) / std)


def test_translation_resizes_or_crops_from_a_ninth_more():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    size = (16, 24)  # height, width
    plain = picture.resize((24, 16), Image.Resampling.BICUBIC)
    never = Random2DTranslation(*size, p=0.0, interpolation=BICUBIC)(picture)
    assert never.tobytes() == plain.tobytes()
    larger = np.array(picture.resize((27, 18), Image.Resampling.BICUBIC))
    cuts = {
        larger[top : top + 16, left : left + 24].tobytes() for top in range(3) for left in range(4)
    }
    torch.manual_seed(0)
    always = Random2DTranslation(*size, p=1.0, interpolation=BICUBIC)
    seen = {always(picture).tobytes() for _ in range(200)}
    assert seen == cuts
    sometimes = Random2DTranslation(*size, p=0.3, interpolation=BICUBIC)
    cropped = sum(sometimes(picture).tobytes() != plain.tobytes() for _ in range(400))
    assert 0.2 < cropped / 400 < 0.4


def test_holes_and_noise():
    torch.manual_seed(0)
    sizes = set()
    for _ in range(300):
        holes = Cutout(n_holes=1, length=4)(torch.ones(3, 9, 7))
        assert torch.equal(holes[0], holes[1]) and torch.equal(holes[0], holes[2])
        rows, columns = ((holes[0] == 0).any(dim=d).sum().item() for d in (1, 0))
        sizes.add((rows, columns))
    # Whole in the middle, cut at the edges: centres lie anywhere in the picture.
    assert sizes == {(r, c) for r in (2, 3, 4) for c in (2, 3, 4)}
    assert (Cutout(n_holes=60, length=8)(torch.ones(3, 9, 7)) == 0).all()
    noise = GaussianNoise(mean=2.0, std=0.5, p=1.0)(torch.full((3, 100, 100), 3.0))
    assert noise.mean().item() == pytest.approx(5, abs=0.02)
    assert noise.std().item() == pytest.approx(0.5, abs=0.02)
    rare = GaussianNoise(p=0.2)
    noisy = sum(
        not torch.equal(rare(torch.zeros(1, 1, 1)), torch.zeros(1, 1, 1)) for _ in range(400)
    )
    assert 0.12 < noisy / 400 < 0.28
    image = torch.rand(3, 8, 8)
    assert torch.equal(GaussianNoise(p=0.0)(image), image)


@pytest.mark.parametrize("name", usual.INTERPOLATIONS)
def test_the_usual_steps_are_torchvisions(name):
    """Every pixel, what is drawn, and what they print: it stands in the keys of cached features."""
    mode, narrow = InterpolationMode(name), {"scale": (0.9, 1.0), "ratio": (2.0, 3.0)}
    colors = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    rng = np.random.default_rng(0)
    for trial in range(60):
        height, width, down, across = (int(n) for n in rng.integers(1, 60, 4))
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        size = (down, across)
        for ours, theirs in [
            (usual.Resize(size, name), T.Resize(size, mode)),
            (usual.Resize(down, name), T.Resize(down, mode)),
            (usual.CenterCrop(size), T.CenterCrop(size)),
            (usual.RandomHorizontalFlip(), T.RandomHorizontalFlip()),
            *(
                (
                    usual.RandomResizedCrop(size, interpolation=name, **where),
                    T.RandomResizedCrop(size, interpolation=mode, **where),
                )
                for where in ({}, narrow)
            ),
        ]:
            mine = usual.Compose([ours, usual.ToTensor(), usual.Normalize(*colors)])
            public = T.Compose([theirs, T.ToTensor(), T.Normalize(*colors)])
            assert repr(mine) == repr(public)
            outcomes = []
            for transform in (mine, public):
                torch.manual_seed(trial)
                try:
                    outcomes.append((transform(picture), torch.get_rng_state()))
                except ValueError:  # a side of no pixel at all
                    outcomes.append((torch.zeros(0), torch.get_rng_state()))
            for found, wanted in zip(*outcomes, strict=True):
                assert torch.equal(found, wanted), (ours, picture.size)


def test_dassls_modes_are_torchvisions():
    from dassl.data import transforms

    assert transforms.INTERPOLATION_MODES["bicubic"] is InterpolationMode.BICUBIC
    translation = Random2DTranslation(8, 8, interpolation=InterpolationMode.BICUBIC)
    assert translation.interpolation == "bicubic"
    with pytest.raises(AttributeError, match="no attribute 'MODES'"):
        _ = transforms.MODES

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.transforms import CHOICES, build_transform
from dassl.data.transforms.transforms import Cutout, InstanceNormalization, Random2DTranslation
from dassl.utils import UserError


def image(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def cfg(*names: str, **options):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.INPUT.SIZE = (24, 16)
    cfg.INPUT.GB_K = 3
    cfg.INPUT.TRANSFORMS = names
    for name, value in options.items():
        cfg.INPUT[name] = value
    return cfg


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_gives_an_image_of_the_size(name):
    for is_train in (True, False):
        torch.manual_seed(0)
        out = build_transform(cfg(name), is_train)(image())
        assert out.shape == (3, 24, 16) and out.dtype == torch.float32 and out.isfinite().all()


def test_test_transform_crops_the_centre():
    out = build_transform(cfg(), is_train=False)(image(24, 24))
    whole = torch.from_numpy(np.array(image(24, 24))).permute(2, 0, 1) / 255
    assert torch.equal(out, whole[:, :, 4:20])


def test_normalization_is_the_configs():
    plain = build_transform(cfg(), is_train=False)(image())
    normed = build_transform(
        cfg("normalize", PIXEL_MEAN=[0.5, 0.4, 0.3], PIXEL_STD=[0.1, 0.2, 0.3]), is_train=False
    )(image())
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.1, 0.2, 0.3])
    assert torch.allclose(normed, (plain - mean[:, None, None]) / std[:, None, None], atol=1e-6)


def test_order_is_fixed(capsys):
    options = cfg("normalize", "colorjitter", "random_flip", "random_resized_crop", "cutout")
    options.VERBOSE = True
    names = [type(step).__name__ for step in build_transform(options).transforms]
    assert names == [
        *("RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter"),
        *("ToTensor", "Cutout", "Normalize"),
    ]
    assert "+ RandomResizedCrop(" in capsys.readouterr().out


def test_resize_only_where_no_crop_does_it():
    first = lambda *names: type(build_transform(cfg(*names)).transforms[0]).__name__  # noqa: E731
    assert first("random_flip") == "Resize"
    assert first("random_crop") == "RandomCrop"


def test_choices_instead_of_the_configs():
    assert len(build_transform(cfg("random_flip"), choices=["normalize"]).transforms) == 3
    assert build_transform(cfg(NO_TRANSFORM=True)) is None


def test_mistakes():
    with pytest.raises(UserError, match=r"INPUT.TRANSFORMS is 'random_flp' .did you mean"):
        build_transform(cfg("random_flp"))
    with pytest.raises(UserError, match="INPUT.INTERPOLATION is 'cubic'"):
        build_transform(cfg(INTERPOLATION="cubic"))


def test_own_transforms():
    torch.manual_seed(0)
    holes = (Cutout(n_holes=1, length=4)(torch.ones(3, 8, 8)) == 0).sum().item()
    assert 0 < holes <= 3 * 16
    out = InstanceNormalization()(torch.rand(3, 8, 8) * 7 + 3)
    assert torch.allclose(out.mean(dim=(1, 2)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(out.std(dim=(1, 2)), torch.ones(3), atol=1e-5)
    views = {Random2DTranslation(16, 16, p=1.0)(image()).tobytes() for _ in range(8)}
    assert len(views) > 1
    assert Random2DTranslation(16, 18, p=0.0)(image()).size == (18, 16)

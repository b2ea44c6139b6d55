"""Backbones of OpenCLIP: activation, heads, what can't be run, against open_clip's own towers."""

import json

import pytest
import torch

from clip import architecture
from clip.architecture import GELU, OPENAI, QUICK_GELU, of_openclip, of_weights, split_name
from clip.clip import find_backbone, load_model
from clip.fused import mlp
from clip.model import ResidualAttentionBlock
from clip.prompting import Encoders
from dassl.utils import UserError

VISION = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}


@pytest.fixture(scope="module", params=["gelu", "quick", "wide heads"])
def theirs(request, tmp_path_factory):
    """A small model of open_clip's, and the folder of its weights and config."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision, text = dict(VISION), dict(TEXT)
    if request.param == "wide heads":
        vision |= {"head_width": 32, "mlp_ratio": 3.0}
        text |= {"heads": 4}
    quick = request.param == "quick"
    torch.manual_seed(0)
    model = CLIP(32, CLIPVisionCfg(**vision), CLIPTextCfg(**text), quick_gelu=quick).eval()
    folder = tmp_path_factory.mktemp("openclip")
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    config |= {"quick_gelu": True} if quick else {}
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / architecture.CONFIG).write_text(json.dumps(content))
    return model, folder / "open_clip_pytorch_model.bin"


def test_features_are_open_clips(theirs):
    model, path = theirs
    backbone = find_backbone(str(path))
    assert backbone.architecture.mean == (0.5, 0.5, 0.5)
    ours = backbone.build().double()
    model = model.double()
    image, text = torch.randn(3, 3, 32, 32).double(), torch.zeros(2, 77, dtype=torch.long)
    text[:, :4] = torch.tensor([[49406, 320, 1125, 49407], [49406, 533, 49407, 0]])
    with torch.no_grad():
        assert torch.allclose(ours.encode_image(image), model.encode_image(image), atol=1e-12)
        assert torch.allclose(ours.encode_text(text), model.encode_text(text), atol=1e-12)
        for fast in (True, False):
            encoders = Encoders(ours, fast)
            assert torch.allclose(encoders.image(image), model.encode_image(image), atol=1e-10)


def test_the_activation_is_part_of_what_a_backbone_is(theirs, tmp_path):
    _, path = theirs
    backbone = find_backbone(str(path))
    copy = tmp_path / "copy.pt"
    copy.write_bytes(path.read_bytes())
    assumed = find_backbone(str(copy))
    named = find_backbone(str(copy), "ViT-B-16")
    assert assumed.architecture.activation == QUICK_GELU
    assert named.architecture.activation == GELU
    assert len({assumed.digest, named.digest, backbone.digest}) == 3


def test_a_file_that_says_nothing_is_told(theirs, tmp_path, capsys):
    copy = tmp_path / "copy.pt"
    copy.write_bytes(theirs[1].read_bytes())
    torch.save({k: v for k, v in torch.load(copy).items() if "mlp" not in k}, tmp_path / "x.pt")
    with pytest.raises(UserError):
        find_backbone(str(tmp_path / "x.pt")).build()
    load_model(str(copy))
    assert "doesn't say its activation: QuickGELU" in capsys.readouterr().out
    load_model("TinyCLIP")
    assert capsys.readouterr().out == ""


def test_names_of_openclip():
    assert of_weights("ViT-B-16", "laion2b_s34b_b88k").activation == GELU
    assert of_weights("ViT-B-16", "datacomp_xl_s13b_b90k").activation == GELU
    assert of_weights("ViT-B-16", "dfn2b").activation == QUICK_GELU  # as its tag says
    huge = of_openclip("ViT-H-14")
    assert (huge.vision_heads, huge.text_heads, huge.half) == (16, 16, False)
    assert of_openclip("RN50").vision_heads is None
    assert split_name("ViT-B-16/laion2b_s34b_b88k") == ("ViT-B-16", "laion2b_s34b_b88k")
    assert split_name("ViT-B/16") is None and split_name("a/b") is None
    assert find_backbone("TinyCLIP").architecture is OPENAI


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: of_openclip("ViT-B-16-SigLIP"), "towers that aren't CLIP's .*timm_model_name"),
        (lambda: of_openclip("roberta-ViT-B-32"), "hf_model_name"),
        (lambda: of_openclip("ViT-B-61"), "no model 'ViT-B-61'.*ViT-B-16"),
        (lambda: of_weights("ViT-B-16", "laion"), "no weights 'laion' of ViT-B-16.*laion400m"),
    ],
)
def test_what_cant_be_run_is_named(call, told):
    with pytest.raises(UserError, match=told):
        call()


def test_a_text_tower_of_its_own_is_refused(tmp_path):
    path = tmp_path / "siglip.pt"
    torch.save({"visual.trunk.x": torch.zeros(1), "text.transformer.y": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="text tower of their own"):
        find_backbone(str(path)).build()


def test_other_images_are_refused(theirs, make_trainer):
    with pytest.raises(UserError, match=r"INPUT.PIXEL_MEAN to \[0.5, 0.5, 0.5\]"):
        make_trainer("ZeroshotCLIP", MODEL__BACKBONE__NAME=str(theirs[1]))


@pytest.mark.parametrize("activation", [GELU, QUICK_GELU])
def test_the_fused_mlp_is_autograds(activation):
    torch.manual_seed(0)
    block = ResidualAttentionBlock(16, 2, hidden=40, activation=activation).double()
    block.requires_grad_(False)
    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 5, 16, dtype=torch.float64)
    plain, fused = block.mlp(x), mlp(block.mlp, x)
    assert torch.allclose(plain, fused, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(plain, mlp(block.mlp, x), atol=1e-12)
    expected, found = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (plain, fused))
    assert torch.allclose(expected, found, atol=1e-12)


def test_an_activation_of_ones_own_is_called():
    class Odd(torch.nn.GELU):
        def forward(self, x):
            return x * 0

    block = ResidualAttentionBlock(16, 2).requires_grad_(False)
    block.mlp.gelu = Odd()
    assert torch.equal(mlp(block.mlp, torch.randn(2, 16)), block.mlp.c_proj.bias.expand(2, 16))

"""The towers against open_clip's, and every file format they are read from."""

import open_clip
import pytest
import torch

from clip import tokenize
from clip.clip import load, load_state_dict
from clip.model import build_model
from dassl.utils import UserError
from tests.conftest import tiny_clip

TEXTS = ["a photo of a cat.", "two dogs, one on the grass", "EuroSAT: annual crop land (2019)"]
SIZES = {
    "ViT": {},
    "ResNet": {"vision_layers": (1, 2, 1, 1), "vision_patch_size": None, "image_resolution": 64},
}


def weights(kind: str) -> dict[str, torch.Tensor]:
    """A state dict as in the release: fp16, batch norms with statistics of their own."""
    model = tiny_clip(seed=2, **SIZES[kind])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    model.logit_scale.data.fill_(4.6052)
    return {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}


@pytest.mark.parametrize("kind", SIZES)
def test_features_equal_open_clips(kind):
    state = weights(kind)
    ours = build_model(dict(state)).float()
    theirs = open_clip.openai.build_model_from_openai_state_dict(dict(state)).float().eval()
    image = torch.randn(3, 3, *[ours.visual.input_resolution] * 2)
    with torch.no_grad():
        for a, b in (
            (ours.encode_image(image), theirs.encode_image(image)),
            (ours.encode_text(tokenize(TEXTS)), theirs.encode_text(open_clip.tokenize(TEXTS))),
        ):
            assert a.abs().max() > 0
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("form", ["archive", "state_dict", "wrapped", "safetensors", "sparse"])
def test_every_file_format_gives_the_same_model(tmp_path, kind, form):
    state = weights(kind)
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pt")
    if form == "archive":  # as OpenAI's: a scripted module with the weights and descriptions
        tree = _as_tree(build_model(dict(state)))
        for name in ("input_resolution", "context_length", "vocab_size"):
            tree.register_buffer(name, torch.tensor(77))
        torch.jit.save(torch.jit.script(tree), path)
    elif form == "safetensors":
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in state.items()}, path)
    elif form == "sparse":
        rows = state["token_embedding.weight"].clone()
        rows[1000:] = 0
        state["token_embedding.weight"] = rows
        torch.save({**state, "token_embedding.weight": rows.to_sparse(1)}, path)
    else:
        wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save(wrapped if form == "wrapped" else state, path)
    model, preprocess = load(str(path), device="cpu")
    for key, value in model.state_dict().items():
        assert torch.equal(value.float(), state[key].float()), key
    from PIL import Image

    size = model.visual.input_resolution
    assert preprocess(Image.new("L", (90, 70))).shape == (3, size, size)


def _as_tree(module: torch.nn.Module) -> torch.nn.Module:
    """A scriptable module with the same names and tensors, and no code."""
    holder = torch.nn.Module()
    for name, child in module.named_children():
        holder.add_module(name, _as_tree(child))
    for name, parameter in module.named_parameters(recurse=False):
        holder.register_parameter(name, torch.nn.Parameter(parameter.half(), False))
    for name, buffer in module.named_buffers(recurse=False):
        holder.register_buffer(name, buffer)
    return holder


def test_misfits_are_named(tmp_path):
    state = weights("ViT")
    del state["ln_final.bias"]
    with pytest.raises(UserError, match="ln_final.bias: expected .*got nothing"):
        build_model(state)
    with pytest.raises(UserError, match="not a CLIP state dict"):
        build_model({"weight": torch.zeros(1)})
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="x.pt"):
        load_state_dict(tmp_path / "x.pt")
    with pytest.raises(UserError, match="doesn't exist"):
        load_state_dict(tmp_path / "y.pt")

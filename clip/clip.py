"""Names, files and text of CLIP: find or download a checkpoint, load it, tokenize.

The public API is OpenAI's; a model name may also be the path of a checkpoint file.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from dassl.utils import UserError, file_sha256, is_disk_error, suggest
from dassl.utils.tensor_files import read_tensors

from .architecture import (
    CLIP_MEAN,
    CLIP_STD,
    OPENAI,
    Architecture,
    beside,
    download,
    of_openclip,
    of_weights,
    split_name,
)
from .model import CLIP, build_model
from .simple_tokenizer import END, START, SimpleTokenizer

__all__ = ["available_models", "build_model", "load", "tokenize"]

_HOST = "https://openaipublic.azureedge.net/clip/models"
_CACHE = "~/.cache/clip"
_TINY = Path(__file__).parents[1] / "mini_world" / "tiny_clip.pt"


class _Models(dict):
    """Model name → address. A name that is a file's path stands for that file itself."""

    def __missing__(self, name: str) -> str:
        if os.path.isfile(name):
            return os.fspath(name)
        if weights := split_name(name):
            return download(*weights)
        raise UserError(
            f"backbone {name!r} is neither a known model nor a file"
            f"{suggest(name, self)}; known: {', '.join(self)}, and OpenCLIP's MODEL/TAG"
        )


_SHA256 = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
# The release keeps each file in a folder named by its SHA-256.
_MODELS = _Models(
    {
        name: f"{_HOST}/{sha256}/{name.replace('/', '-').replace('@', '-')}.pt"
        for name, sha256 in _SHA256.items()
    }
)
_MODELS["TinyCLIP"] = str(_TINY)


def available_models() -> list[str]:
    """The names `load` knows: OpenAI's nine models and the embedded TinyCLIP."""
    return list(_MODELS)


def _download(url: str, root: str | os.PathLike = _CACHE) -> str:
    """Return the local file of `url`, fetched into `root` (resumed, checksum verified) if needed.

    A local path is returned as it is.

    Raises:
        UserError: the file can't be fetched, or what came isn't the released file.
    """
    if os.path.isfile(url):
        return url
    expected, name = url.split("/")[-2:]
    root = Path(root).expanduser()
    target = root / name
    by_hand = f"download {url} by hand and put it at {target}"
    if target.exists() and not target.is_file():
        raise UserError(f"{target} exists and is not a file; move it away, or {by_hand}")
    if target.is_file():
        if file_sha256(target) == expected:
            return str(target)
        warnings.warn(
            f"{target} has another SHA-256 than the release; fetching again", stacklevel=2
        )
    part = target.with_suffix(target.suffix + ".part")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _fetch(url, part)
    except OSError as error:  # urllib's errors are OSErrors too
        if is_disk_error(error):
            error.filename = error.filename or str(part)
            raise
        raise UserError(
            f"cannot download {name} ({error}); without internet, {by_hand}; "
            "or set MODEL.BACKBONE.NAME to a checkpoint file"
        ) from None
    if file_sha256(part) != expected:
        part.unlink()
        raise UserError(f"what came from {url} is not the released file (SHA-256); {by_hand}")
    os.replace(part, target)
    return str(target)


def _fetch(url: str, part: Path) -> None:
    """Fetch `url` into `part`, continuing where an earlier attempt stopped."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing left to fetch
            return
        raise
    with response:
        resumed = response.status == 206
        length = int(response.headers.get("Content-Length") or 0)
        done = have if resumed else 0
        bar = tqdm(
            total=done + length or None, initial=done, unit="iB", unit_scale=True, desc=part.stem
        )
        with open(part, "ab" if resumed else "wb") as file, bar:
            while block := response.read(1 << 16):
                file.write(block)
                bar.update(len(block))
    if length and part.stat().st_size != done + length:
        raise OSError(f"connection closed after {part.stat().st_size} of {done + length} bytes")


def load_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read a CLIP checkpoint: TorchScript archive, plain state dict or safetensors.

    A state dict may sit under "state_dict" or "model", and its names may start with "module.".

    Raises:
        UserError: the file is missing or none of these.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise UserError(f"checkpoint {path!r} doesn't exist")
    state = read_tensors(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path!r} holds a {type(state).__name__}, not a state dict")
    return {
        k.removeprefix("module."): v
        for k, v in state.items()
        if isinstance(k, str) and torch.is_tensor(v)
    }


def find_model(name: str, download_root: str | os.PathLike | None = None) -> str:
    """The file of a model's name or a checkpoint's path, downloaded if need be."""
    return _download(_MODELS[name], download_root or _CACHE)


@dataclass(frozen=True)
class Backbone:
    """A backbone on disk. digest: what tells it from all others."""

    path: str
    architecture: Architecture
    digest: str

    def build(self) -> CLIP:
        """The model, on the CPU; OpenAI's matrices in fp16 (`model.float()` for fp32).

        What had to be assumed of it is in its `note`.
        """
        state = load_state_dict(self.path)
        model = build_model(state, self.architecture)
        if self.architecture is _ASSUMED and "input_resolution" not in state:
            model.note = (
                f"{self.path} doesn't say its activation: QuickGELU and heads of width 64 are "
                "assumed, as OpenAI's have; MODEL.BACKBONE.ARCHITECTURE names OpenCLIP's"
            )
        return model


_ASSUMED = Architecture(source="nothing")


def find_backbone(
    name: str, model: str = "", download_root: str | os.PathLike | None = None
) -> Backbone:
    """The backbone of a name (see `find_model`), with what its weights don't say.

    Args:
        name: a model's name, OpenCLIP's MODEL/TAG, or a checkpoint's path.
        model: the OpenCLIP model whose architecture it has; "": as the name or the files beside
            it say, else OpenAI's.
        download_root: where OpenAI's files are kept, if not in ~/.cache/clip.

    Raises:
        UserError: unknown, or with towers that aren't CLIP's.
    """
    path = find_model(name, download_root)
    sha256 = file_sha256(path)
    if model:
        architecture = of_openclip(model)
    elif name in _MODELS or sha256 in _SHA256.values() or sha256 == file_sha256(_TINY):
        architecture = OPENAI
    elif not os.path.isfile(name) and (weights := split_name(name)):
        architecture = of_weights(*weights)
    else:
        architecture = beside(path) or _ASSUMED
    return Backbone(path, architecture, architecture.digest(sha256))


def load_model(name: str, download_root: str | os.PathLike | None = None) -> tuple[CLIP, str]:
    """The CLIP that `name` (a model's name or a checkpoint's path) stands for, and its file.

    The model is on the CPU, OpenAI's matrices in fp16 (`model.float()` for fp32).
    """
    backbone = find_backbone(name, download_root=download_root)
    model = backbone.build()
    if model.note:
        print(model.note)
    return model, backbone.path


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
) -> tuple[CLIP, Callable]:
    """Load a model for inference; → (model, the preprocessing of a PIL image to (3,I,I)).

    fp16 on a GPU, fp32 on a CPU. `jit` exists for OpenAI's signature; the model is never scripted.

    Raises:
        UserError: unknown name, unreadable or mismatching file, failed download.
    """
    if jit:
        warnings.warn("jit=True is ignored: the model is plain PyTorch", stacklevel=2)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_model(name, download_root)[0].to(device)
    if device.type == "cpu":
        model.float()
    return model, _transform(model.visual.input_resolution)


def _transform(n_px: int) -> Callable:
    """CLIP's own preprocessing: bicubic resize, centre crop, RGB, CLIP's mean and deviation."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(n_px, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(n_px),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )


_tokenizer = SimpleTokenizer()


def tokenize(
    texts: str | list[str], context_length: int = 77, truncate: bool = False
) -> torch.Tensor:
    """Texts → (len(texts), context_length) int token ids: SOS, words, EOT, zeros.

    Raises:
        RuntimeError: a text is too long and `truncate` is False (as OpenAI's function does).
    """
    sos, eot = _tokenizer.encoder[START], _tokenizer.encoder[END]
    if isinstance(texts, str):
        texts = [texts]
    result = torch.zeros(len(texts), context_length, dtype=torch.int)
    for row, text in zip(result, texts, strict=True):
        ids = [sos, *_tokenizer.encode(text), eot]
        if len(ids) > context_length:
            if not truncate:
                raise RuntimeError(f"{text!r} is too long for context length {context_length}")
            ids = [*ids[: context_length - 1], eot]
        row[: len(ids)] = torch.tensor(ids)
    return result

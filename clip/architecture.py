"""What the weights of a backbone don't say of it: its activation, its heads, its images' scale.

OpenAI's models have QuickGELU and heads of width 64. Most of OpenCLIP's (LAION, DataComp) have the
exact GELU, and the larger ones wider heads; their shapes are OpenAI's, so that a file alone doesn't
tell. What tells is, in this order: MODEL.BACKBONE.ARCHITECTURE, the name of an OpenCLIP model; the
name `MODEL/TAG` of OpenCLIP's weights; an `open_clip_config.json` beside the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.utils import UserError, file_sha256, read_json, suggest

from .open_clip_parts import package_folder

QUICK_GELU, GELU = "quick_gelu", "gelu"
CONFIG = "open_clip_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What of a model's config these towers do, or what changes no feature of theirs.
_MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}
_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_VISION |= {"patch_dropout"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


@dataclass(frozen=True)
class Architecture:
    """What to build around a state dict.

    activation: of the blocks' MLPs, QUICK_GELU or GELU. vision_heads, text_heads: of attention;
    None: the width over 64. half: whether the released matrices are fp16. mean, std: of the images,
    per channel. source: what said so.
    """

    activation: str = QUICK_GELU
    vision_heads: int | None = None
    text_heads: int | None = None
    half: bool = True
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    source: str = "OpenAI's release"

    def digest(self, sha256: str) -> str:
        """What tells a backbone: the SHA-256 of its file, if the rest is as OpenAI's.

        Otherwise that of file and architecture.
        """
        if (self.activation, self.half) == (QUICK_GELU, True):
            return sha256
        built = [sha256, self.activation, self.vision_heads, self.text_heads]
        return hashlib.sha256(json.dumps(built).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What `CLIP.__init__` takes beside the sizes; heads only where they are known."""
        heads = {"vision_heads": self.vision_heads, "transformer_heads": self.text_heads}
        known = {name: value for name, value in heads.items() if value is not None}
        return {"activation": self.activation, **known}


OPENAI = Architecture()


def of_openclip(model: str) -> Architecture:
    """The architecture of an OpenCLIP model, by its name there: "ViT-B-16", "ViT-H-14".

    Raises:
        UserError: unknown, or with towers that aren't CLIP's.
    """
    known = {path.stem: path for path in (package_folder() / "model_configs").glob("*.json")}
    if model not in known:
        raise UserError(f"OpenCLIP has no model {model!r}{suggest(model, known)}")
    return _of_config(read_json(known[model], dict), f"OpenCLIP's {model}")


def beside(path: str | os.PathLike) -> Architecture | None:
    """What the `open_clip_config.json` beside a file of weights says; None if there is none.

    Raises:
        UserError: its towers aren't CLIP's.
    """
    config = Path(path).parent / CONFIG
    if not config.is_file():
        return None
    content = read_json(config, dict)
    images = content.get("preprocess_cfg") or {}
    return _of_config(content.get("model_cfg") or {}, str(config), images)


def split_name(name: str) -> tuple[str, str] | None:
    """(model, tag) of OpenCLIP's weights "MODEL/TAG"; None for any other name."""
    model, _, tag = name.partition("/")
    if not tag or "/" in tag:
        return None
    return (
        (model, tag) if (package_folder() / "model_configs" / f"{model}.json").is_file() else None
    )


def of_weights(model: str, tag: str) -> Architecture:
    """The architecture of OpenCLIP's weights: the model's, with the tag's activation and images.

    Raises:
        UserError: no such weights, or towers that aren't CLIP's.
    """
    weights = _weights(model, tag)
    config = dict(read_json(package_folder() / "model_configs" / f"{model}.json", dict))
    config["quick_gelu"] = bool(weights.get("quick_gelu"))
    return _of_config(config, f"OpenCLIP's {model}/{tag}", weights)


def download(model: str, tag: str) -> str:
    """Return the local file of OpenCLIP's weights, fetched through open_clip if need be.

    Raises:
        UserError: no such weights, or they can't be had.
    """
    from open_clip.pretrained import download_pretrained

    weights = _weights(model, tag)
    try:
        path = download_pretrained(weights)
    except Exception as error:  # of two libraries for the network
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot download {model}/{tag} ({why}); get its file by hand and say "
            f"MODEL.BACKBONE.NAME FILE MODEL.BACKBONE.ARCHITECTURE {model}"
        ) from None
    _verify(path)
    return path


def _verify(path: str) -> None:
    """Raise UserError if a file of the hub isn't what its name there, a SHA-256, says."""
    name = os.path.basename(os.path.realpath(path))
    is_hash = len(name) == 64 and set(name) <= set("0123456789abcdef")
    if is_hash and file_sha256(path) != name:
        raise UserError(f"{path} isn't the released file (SHA-256); delete it to fetch it again")


def _weights(model: str, tag: str) -> dict[str, Any]:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    weights = get_pretrained_cfg(model, tag)
    if not weights:
        tags = list_pretrained_tags_by_model(model)
        raise UserError(
            f"OpenCLIP has no weights {tag!r} of {model}{suggest(tag, tags)}; "
            f"there are {', '.join(tags) or 'none'}"
        )
    return weights


def _of_config(
    config: Mapping[str, Any], source: str, images: Mapping[str, Any] | None = None
) -> Architecture:
    """The architecture a config says. Raises UserError for what these towers don't do."""
    vision, text = (config.get(f"{tower}_cfg") or {} for tower in ("vision", "text"))
    odd = [key for key in config if key not in _MODEL and config[key]]
    odd += [f"vision {key}" for key in vision if key not in _VISION and vision[key]]
    odd += [f"text {key}" for key in text if key not in _TEXT and text[key]]
    if odd:
        raise UserError(
            f"{source} has towers that aren't CLIP's ({', '.join(odd)}): they can't be run here"
        )
    layers = vision.get("layers")
    head = vision.get("head_width", 64)
    images = images or {}
    return Architecture(
        activation=QUICK_GELU if config.get("quick_gelu") else GELU,
        vision_heads=vision["width"] // head if isinstance(layers, int) else None,
        text_heads=text.get("heads"),
        half=False,
        mean=tuple(images.get("mean") or CLIP_MEAN),
        std=tuple(images.get("std") or CLIP_STD),
        source=source,
    )

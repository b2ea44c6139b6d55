"""Checkpoints of the original CoOp, CoCoOp, KgCoOp, MaPLe, VPT, PromptSRC, LASP, PRE and DePT code.

And of TaskRes's, CLAP's, TCP's, CaPT's, MMA's, MMRL's, MMRL++'s and CLIP-LoRA's. They are
recognized by their content: the names in their `state_dict`; CLIP-LoRA's files have `weights` in
its place.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from clip.prompting import PromptLayout
from dassl.utils import UserError, load_checkpoint

from .method import Classes, Method

# Original name → ours; a VPT layer's own prompts are numbered from its second layer on.
_RENAMED = [
    (r"(?:prompt_learner\.)?ctx", lambda m: "ctx"),
    (r"((?:text|visual|shared)_adapter\..+)", lambda m: m[1]),
    (r"weights\.(layer_\d+\..+)", lambda m: m[1]),
    (r"representation_learner\.(.+)", lambda m: m[1]),
    (r"image_encoder\.(proj_rep|A|B)", lambda m: m[1]),
    (r"(?:prompt_learner\.)?meta_net\.(.+)", lambda m: f"meta_net.{m[1]}"),
    (r"prompt_learner\.proj\.(.+)", lambda m: f"projections.0.{m[1]}"),
    (r"prompt_learner\.compound_prompts_text\.(\d+)", lambda m: f"deep.{m[1]}"),
    (
        r"prompt_learner\.compound_prompt_projections\.(\d+)\.(.+)",
        lambda m: f"projections.{int(m[1]) + 1}.{m[2]}",
    ),
    (r"image_encoder\.VPT", lambda m: "vision.prompts"),
    (
        r"image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow",
        lambda m: f"vision.deep.{int(m[1]) - 1}",
    ),
    (
        r"text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow",
        lambda m: f"deep.{int(m[1]) - 1}",
    ),
    (
        r"(?:.+\.)?linear_(text|vision)_gamma\.(\d+)\.([01])\.weight",
        lambda m: f"nets.{m[1]}.{m[2]}.{m[3]}",
    ),
    (r"adapter_(image|text)\.(fc\.[02]\.weight)", lambda m: f"adapters.{m[1]}.{m[2]}"),
    (r"VPT_image_trans\.(conv1\.[013]\..+)", lambda m: f"projector.{m[1]}"),
    (r"encoder_network\.(.+)", lambda m: f"encoder_network.{m[1]}"),
    (r"prompt_learner\.w", lambda m: "w"),
    (r"(?:prompt_learner\.|adapter\.)?(text_feature_residuals|prototypes)", lambda m: m[1]),
    (r"prompt_learner\.ucp\.unified_transfer\.(.+)", lambda m: f"transfer.{m[1]}"),
    (r"film_(?:lp_)?img\.(scale|bias)", lambda m: f"cat.cwt_image.{m[1]}"),
    (r"film_(?:lp_)?text\.(scale|bias)", lambda m: f"cat.cwt_text.{m[1]}"),
    (r"(?:linear_probe_proj|classifier)\.(weight|bias)", lambda m: f"cat.classifier.{m[1]}"),
]

# Parts of the frozen CLIP that a method may train copies of.
_TOWER = re.compile(r"image_encoder\.transformer\.resblocks\.(\d+\.ln_[12]\.(?:weight|bias))")

_UPPER = re.compile(
    r"(image|text)_encoder\.(?:transformer\.resblocks\.(\d+\..+)|(ln_(?:post|final)\..+|(?:text_)?proj.*))"
)

# What only LASP's learner holds: its own correction, or its references.
_LASP = re.compile(r"prompt_learner\.(?:w|class_text_features|token_(?:prefix|suffix)_all)")

# What the original KgCoOp saves beside that, and never uses; and TaskRes's and CLAP's frozen text
# features, which come from this run's class names.
_UNUSED = re.compile(r"(?:prompt_learner\.)?bias_vectors|(?:.+\.)?base_text_features")

# Names only the original code's state dicts have.
_ORIGINAL = re.compile(
    r"(?:text|visual|shared)_adapter\.|representation_learner\.|weights\.layer_\d"
    r"|prompt_learner\.|token_prefix|token_suffix|film_(?:lp_)?(?:img|text)\.|linear_probe_proj"
    r"|image_encoder\."
    r"|text_encoder\.|bias_vectors|encoder_network\.|base_text_features"
)


def read(path: str | os.PathLike) -> dict:
    """Read a checkpoint file, ours, an original one, or bare parameters.

    Raises:
        UserError: the file is missing, unreadable or holds no parameters.
    """
    checkpoint = load_checkpoint(path)
    if isinstance(checkpoint.get("weights"), dict) and "metadata" in checkpoint:  # CLIP-LoRA's
        flat = dict(_flat(checkpoint["weights"], "weights."))
        checkpoint = {"state_dict": flat, "settings": checkpoint["metadata"]}
    if "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint}
    state = {
        name.removeprefix("module."): value
        for name, value in checkpoint["state_dict"].items()
        if isinstance(name, str) and torch.is_tensor(value)
    }
    if not state:
        raise UserError(f"{os.fspath(path)} holds no parameters")
    return {**checkpoint, "state_dict": state}


def _flat(tree: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    """What nested dictionaries hold, by names with dots."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_original(state: Iterable[str]) -> bool:
    """Whether these names are the original code's."""
    return any(_ORIGINAL.match(name) for name in state)


def kind(state: Iterable[str]) -> str:
    """Which of the original layouts these names are, in words."""
    names = list(state)

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    if has(r"^text_encoder\.token_embedding"):
        method = "SkipT"
    elif has("compound_prompts_text"):
        method = "CoPrompt" if has("^adapter_text") else "MaPLe"
    elif has(r"^representation_learner\.srra_"):
        method = "MMRL++"
    elif has(r"^representation_learner\."):
        method = "MMRL"
    elif has("^shared_adapter"):
        method = "MMA"
    elif has(r"^weights\.layer_"):
        method = "CLIP-LoRA"
    elif has(r"^(prompt_learner\.)?text_feature_residuals"):
        method = "TaskRes"
    elif has(r"^(adapter\.)?prototypes"):
        method = "CLAP or ZS-LP"
    elif has(_LASP.pattern):
        method = "LASP"
    elif has(r"^encoder_network\."):
        method = "PRE"
    elif has(r"^text_encoder.*VPT_shallow"):
        method = "PromptSRC or ProMetaR"
    elif has(r"^VPT_image_trans\."):
        method = "PromptKD"
    elif has(r"^image_encoder\.VPT"):
        method = "PromptSRC" if has(r"^prompt_learner\.ctx") else "VPT"
    elif has(r"^prompt_learner\.ucp\."):
        method = "CaPT on KgCoOp" if has("bias_vectors") else "CaPT on CoOp"
    elif has(r"bias_vectors"):
        method = "KgCoOp"
    elif has(r"meta_net\."):
        method = "CoCoOp or TCP"
    else:
        method = "CoOp or KgCoOp"
    return f"DePT on {method}" if has("^film_|^linear_probe_proj") else method


def translate(
    state: dict[str, torch.Tensor], wanted: Iterable[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Values by our names, as far as they are `wanted`, and the original names left behind.

    The frozen CLIP's own tensors and the class-bound token buffers are neither: they are rebuilt.
    """
    wanted = set(wanted)
    ours, left = {}, []
    # The others' copies of these are the frozen CLIP's own.
    tower = any(map(_LASP.fullmatch, state))
    for name, value in state.items():
        new = next((to(m) for p, to in _RENAMED if (m := re.fullmatch(p, name))), None)
        if norm := _TOWER.fullmatch(name):
            own = f"norms.{norm[1]}"
            new = own if tower or own in wanted else None
        if upper := _UPPER.fullmatch(name):
            own = f"{upper[1]}_upper.{'blocks.' if upper[2] else ''}{upper[2] or upper[3]}"
            new = own if own in wanted else new
        if new in wanted:
            ours[new] = value
        elif new is not None or _UNUSED.fullmatch(name):
            left.append(name)
    return ours, left


def class_keys(state: dict[str, torch.Tensor], method: Method) -> list[str] | None:
    """The classes a checkpoint was trained on, told by its stored class-name embeddings.

    The original code keeps no class names, but `token_suffix` holds the token embeddings of each
    prompt after its context, the class name's and those of frozen words before it, and MMRL's
    `prompt_embeddings` those of whole sentences. Their rows are looked up in the data set's label
    space, where equal names are told apart by their order.

    Returns:
        One key per trained class, one that no class has where the class isn't in the label space;
        None when the checkpoint lacks the buffer.
    """
    if "prompt_embeddings" in state:
        return _of_sentences(state["prompt_embeddings"], method)
    suffix = next((v for k, v in state.items() if k.endswith("token_suffix")), None)
    if suffix is None:
        return None
    classes, encoder = method.classes, method.encoders.text
    space = {**classes.label_space, **dict(zip(classes.keys, classes.names, strict=True))}
    n_ctx = encoder.context_length - 1 - suffix.shape[1]
    # Whatever the class token position, the original code's buffer has the class name first.
    layout = encoder.layout(list(space.values()), n_ctx, words=method.words, tail=method.tail)
    ids = layout.tokens[:, 1 + n_ctx :]
    with torch.no_grad():
        known = _fingerprints(encoder.token_embedding(row) for row in ids)
        words = encoder.token_embedding(ids[:1, : len(method.words)]).to("cpu", torch.float16)
    if not (suffix[:, : len(method.words)].to("cpu", torch.float16) == words).all():
        print(
            "Its prompts go on with other words after the context than this run's, which changes "
            "its logits: set CTX_INIT and the number of vectors as in training"
        )
    return _in_order(_fingerprints(suffix), dict(zip(space, known, strict=True)))


def _of_sentences(prompts: torch.Tensor, method: Method) -> list[str] | None:
    """`class_keys` by the embeddings prompts (C,77,d_t) of the template with every class name.

    None where they don't begin with SOS's.
    """
    classes, encoder = method.classes, method.encoders.text
    space = {**classes.label_space, **dict(zip(classes.keys, classes.names, strict=True))}
    sentences = Classes(list(space.values()), list(space), classes.template).sentences()
    layout = PromptLayout.of_texts(sentences, encoder.context_length)
    ids = layout.tokens.to(encoder.positional_embedding.device)
    with torch.no_grad():
        known = _fingerprints(encoder.token_embedding(row) for row in ids)
        start = encoder.token_embedding(ids[:1, 0]).to("cpu", torch.float16)
    if prompts.dim() != 3 or not (prompts[:, 0].to("cpu", torch.float16) == start).all():
        return None
    return _in_order(_fingerprints(prompts), dict(zip(space, known, strict=True)))


def _fingerprints(rows: Iterable[torch.Tensor]) -> list[bytes]:
    """What tells rows of embeddings apart: a hash of their values in fp16, CLIP's own precision."""
    return [
        hashlib.blake2b(row.detach().to("cpu", torch.float16).numpy().tobytes()).digest()
        for row in rows
    ]


def _in_order(trained: list[bytes], space: dict[str, bytes]) -> list[str]:
    """Keys of the trained rows: rows and the label space's classes, by key, are in the same order.

    Rows that are one stretch of the label space (all of it, base or new classes) are that stretch.
    Otherwise the k-th row of equal ones is the k-th such class.
    """
    keys, known = list(space), list(space.values())
    n = len(trained)
    stretches = [i for i in range(len(known) - n + 1) if known[i : i + n] == trained]
    if len(stretches) == 1:
        return keys[stretches[0] :][:n]
    namesakes: dict[bytes, deque[str]] = defaultdict(deque)
    for key, fingerprint in space.items():
        namesakes[fingerprint].append(key)
    return [
        namesakes[fingerprint].popleft()
        if namesakes[fingerprint]
        else f"<class {row} of the checkpoint>"
        for row, fingerprint in enumerate(trained)
    ]

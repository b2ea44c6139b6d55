"""A trained model as a folder that stands alone: no run, no data set, no pickle.

    from tuning.exported import ExportedModel

    model = ExportedModel.from_pretrained("FOLDER")     # or a repository of the Hugging Face hub
    print(model(["photo.jpg"], top=3))

The folder holds

    model.json            classes, template, backbone
    config.yaml           the settings that the method was built with
    model.safetensors     what was trained, by its names in checkpoints; class_embeddings (C,D), the
                          L2-normalized text features, where they don't depend on the image; and
                          logit_scale (), the logarithm of τ
    backbone.safetensors  CLIP, where the backbone has no public name
    sentences.json        the classes' own sentences, where the text features are made of them
    model.onnx            images (B,3,I,I) → logits (B,C), where it was asked for
    README.md             what it is, and how to use it

Shape letters: method.py's.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl.utils import UserError, atomic_write, check_kind, json_text, read_json
from dassl.utils.tensor_files import read_tensors
from tuning.defaults import read_config

from .prediction import Predictor
from .run import Run

if TYPE_CHECKING:
    from .method import Method

FORMAT = 1
DESCRIPTION, TENSORS, BACKBONE = "model.json", "model.safetensors", "backbone.safetensors"
SENTENCES = "sentences.json"
EMBEDDINGS, SCALE, PREPARED = "class_embeddings", "logit_scale", "prepared."
# What model.json says of a checkpoint.
SAID = ("class_keys", "classnames", "template", "backbone_sha256", "epoch")


class ExportedRun(Run):
    """What `ExportedModel` reads its model from: a folder that `save` has written."""

    @cached_property
    def description(self) -> dict[str, Any]:
        """What model.json says. Raises UserError if it is of a later format."""
        path = self.folder / DESCRIPTION
        found = read_json(path, dict)
        if found.get("format") != FORMAT:
            raise UserError(
                f"{path} is of format {found.get('format')!r}, this version reads {FORMAT}"
            )
        for key in ("class_keys", "classnames"):
            check_kind(found.get(key), list, f"{path}: its entry {key!r}")
        return found

    @cached_property
    def checkpoint_path(self) -> Path | None:
        """The file of tensors; None for a method that trains nothing."""
        return self.folder / TENSORS if self.trainer_class.trains else None

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint would hold."""
        tensors = read_tensors(self.folder / TENSORS)
        ours = {k: v for k, v in tensors.items() if k not in (EMBEDDINGS, SCALE)}
        return {
            **{key: self.description.get(key) for key in SAID},
            "state_dict": {k: v for k, v in ours.items() if not k.startswith(PREPARED)},
            "prepared": {
                k.removeprefix(PREPARED): v for k, v in ours.items() if k.startswith(PREPARED)
            },
        }

    def backbone_name(self) -> str:
        """The backbone: the one asked for, the folder's own, or that of the public name."""
        own = self.folder / BACKBONE
        if not self.backbone and own.is_file():
            return str(own)
        return super().backbone_name()

    def sentences_file(self) -> str:
        """The folder's own."""
        own = self.folder / SENTENCES
        return str(own) if own.is_file() else ""


class ExportedModel(Predictor):
    """A model in a folder that `export.py` has written; classifies images as a `Predictor`.

    Raises:
        UserError: there is none.
    """

    def __init__(self, folder: str | os.PathLike, backbone: str = "") -> None:
        folder = Path(folder)
        if not (folder / DESCRIPTION).is_file():
            raise UserError(f"{folder} is no exported model: it has no {DESCRIPTION}")
        run = ExportedRun(folder, read_config(folder), None, backbone)
        run.description  # noqa: B018 - what can't be read is said before the rest
        self.take(run)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, revision: str | None = None) -> ExportedModel:
        """The model in a folder, or in a repository of the Hugging Face hub, fetched if need be.

        Raises:
            UserError: it isn't there, or can't be fetched.
        """
        if os.path.isdir(name):
            return cls(name)
        from huggingface_hub import snapshot_download

        try:
            # Nothing that could be run is asked for.
            wanted = ["*.json", "*.yaml", "*.safetensors", "*.onnx", "README.md"]
            folder = snapshot_download(str(name), revision=revision, allow_patterns=wanted)
        except Exception as error:  # of two libraries for the network
            raise UserError(
                f"{name} is neither a folder nor a repository that can be fetched: {_one(error)}"
            ) from None
        return cls(folder)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Copy the model's files to `folder`. Raises UserError if something is there."""
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target} is not empty")
        shutil.copytree(self.run.folder, target, dirs_exist_ok=True)

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload the files to the Hugging Face repository `name`; return its address.

        Raises:
            UserError: it can't be done; `hf auth login` stores the access token it takes.
        """
        from huggingface_hub import HfApi

        try:
            api = HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=str(self.run.folder))
        except Exception as error:  # of two libraries for the network
            raise UserError(f"cannot upload to {name}: {_one(error)}") from None
        return f"https://huggingface.co/{name}"


def save(run: Run, folder: Path, with_backbone: bool = False) -> None:
    """Write a run's model to a folder, all but ONNX.

    Args:
        run: a finished run.
        folder: is made; must be empty.
        with_backbone: CLIP's tensors too, even if the backbone has a public name.

    Raises:
        UserError: the folder isn't empty, or the run has no model.
    """
    import torch
    from safetensors.torch import save as as_safetensors

    from clip import available_models
    from clip.clip import find_backbone, load_state_dict

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: say another --output")
    method, checkpoint = run.method(), run.checkpoint
    said = {key: checkpoint.get(key) or run.result.get(key) for key in SAID}
    said |= {"class_keys": run.class_keys, "classnames": run.classnames, "template": run.template}
    cfg = _without_paths(run.cfg)
    name = run.backbone_name()
    if with_backbone or name not in available_models():
        found = find_backbone(name, run.cfg.MODEL.BACKBONE.ARCHITECTURE)
        _write(folder / BACKBONE, as_safetensors(_plain(load_state_dict(found.path))))
        beside = Path(found.path).with_name("open_clip_config.json")
        if beside.is_file():
            shutil.copy(beside, folder / beside.name)
        own = find_backbone(str(folder / BACKBONE), run.cfg.MODEL.BACKBONE.ARCHITECTURE)
        said["backbone_sha256"] = own.digest
        cfg.MODEL.BACKBONE.NAME = BACKBONE
    _save_sentences(run, method, folder)
    tensors = dict(checkpoint.get("state_dict", {}))
    tensors |= {f"{PREPARED}{key}": v for key, v in checkpoint.get("prepared", {}).items()}
    tensors[SCALE] = method.encoders.logit_scale.detach().float().cpu()
    with torch.no_grad():
        embeddings = class_embeddings(run)
    if embeddings is None:
        print("Its text features depend on the image: there are no class embeddings to save")
    else:
        tensors[EMBEDDINGS] = embeddings
    _write(folder / TENSORS, as_safetensors(_plain(tensors)))
    with atomic_write(folder / "config.yaml") as file:
        file.write(cfg.dump())
    with atomic_write(folder / DESCRIPTION) as file:
        entries = {"format": FORMAT, "trainer": run.cfg.TRAINER.NAME, **said}
        file.write(json_text(entries, indent=2) + "\n")


def _save_sentences(run: Run, method: Method, folder: Path) -> None:
    """Write the classes' own sentences, where the text features are made of them."""
    described = method.classes.described
    if not described:
        return
    names = zip(run.classnames, run.class_keys, strict=True)
    own = {name: list(described[key]) for name, key in names}
    with atomic_write(folder / SENTENCES) as file:
        file.write(json_text(own, indent=2) + "\n")


def class_embeddings(run: Run) -> Any:
    """L2-normalized text features (C,D), fp32; None where each image has its own."""
    import torch

    from .method import unit

    size = run.cfg.INPUT.SIZE
    text = run.features(torch.zeros(1, 3, *size)).text
    return unit(text).float().cpu() if text.dim() == 2 else None


def _without_paths(cfg: Any) -> Any:
    """The settings without what is this machine's."""
    from dassl.config import get_cfg_default
    from dassl.config.identity import MACHINE_KEYS

    defaults, cfg = get_cfg_default(), cfg.clone()
    cfg.defrost()
    for key in (*MACHINE_KEYS, "MODEL.INIT_WEIGHTS", "DATASET.SENTENCES"):
        node, value = cfg, defaults
        *path, last = key.split(".")
        for part in path:
            node, value = node[part], value[part]
        if last in value:
            node[last] = value[last]
    return cfg


def _plain(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors as safetensors takes them: none that shares another's memory."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path, "wb", len(content)) as file:
        file.write(content)


def _one(error: BaseException) -> str:
    with contextlib.redirect_stderr(io.StringIO()):
        return " ".join(str(error).split())[:300] or type(error).__name__

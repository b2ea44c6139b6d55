"""What open_clip ships and we don't write again: OpenAI's BPE tokenizer and its prompt templates.

`import open_clip` loads a whole training stack (seconds); its tokenizer and template modules stand
on their own, so they are loaded by file, without the package's `__init__`.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType


def package_folder() -> Path:
    """The folder of the package. Raises ImportError when open_clip_torch isn't installed."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise ImportError("open_clip_torch is missing: pip install -r requirements.txt")
    return Path(package.submodule_search_locations[0])


@cache
def load_part(name: str) -> ModuleType:
    """Load `open_clip/<name>.py` alone. Raises ImportError when open_clip_torch isn't installed."""
    path = package_folder() / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"_open_clip_{name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _texts(templates) -> list[str]:
    return [template("{}") for template in templates]


def imagenet_templates() -> list[str]:
    """OpenAI's 80 ImageNet prompt templates, each with one `{}`."""
    return _texts(load_part("zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES)


def selected_imagenet_templates() -> list[str]:
    """The 7 templates OpenAI selected for ensembling, each with one `{}`."""
    return _texts(load_part("zero_shot_metadata").SIMPLE_IMAGENET_TEMPLATES)

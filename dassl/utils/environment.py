"""What this run stands on: versions and devices."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "yacs", "open_clip_torch")


def library_versions() -> dict[str, str]:
    """Return the versions of python and of the installed packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def collect_env_info() -> str:
    """Return a few lines for the log: versions, operating system, processors, GPUs."""
    import torch

    lines = [f"{name} {number}" for name, number in library_versions().items()]
    lines.append(f"{platform.system()} {platform.release()}, {os.cpu_count()} CPU cores")
    lines.append(f"CUDA {torch.version.cuda or 'not built in'}")
    for i in range(torch.cuda.device_count()):
        lines.append(f"GPU {i}: {torch.cuda.get_device_name(i)}")
    return "\n".join(lines)

"""What this run stands on: versions and devices."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "yacs", "open_clip_torch")


def library_versions() -> dict[str, str]:
    """Return the versions of python and of the installed packages that results depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
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


def forget_peak_memory() -> None:
    """Have `peak_memory_mb` begin with what is in use now, where the system can."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_memory_mb() -> float:
    """Return the most memory this process used so far, in MiB: of the GPU where it uses one."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        # Not getrusage: there a process begins with the peak of the one that started it.
        with open("/proc/self/status", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["VmHWM"].split()[0]) / 2**10
    except (OSError, KeyError):  # not a Linux
        pass
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0.0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return used / 2**20 if sys.platform == "darwin" else used / 2**10

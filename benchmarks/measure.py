"""Times, memory and arithmetic of callables."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, on a GPU until it is done there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warm: bool = False,
) -> dict[str, float]:
    """Median seconds of each call; they take turns, so that a busy machine is busy for all.

    warm: each has been called before.
    """
    for call in () if warm else calls.values():
        call()  # memory is allocated, kernels are chosen
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {name: statistics.median(values) for name, values in times.items()}


def gflop(call: Callable[[], object]) -> float:
    """Multiply-adds of one call's matrix products and attention, each as two operations, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def matmul_gflops(device: torch.device, dtype: torch.dtype, width: int = 1024) -> float:
    """The rate of a plain matrix product here, in 1e9 operations per second: the floor's unit."""
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    repeats = 100 if device.type == "cuda" else 1

    def multiply() -> None:
        for _ in range(repeats):
            a @ b

    return 2e-9 * width**3 * repeats / interleaved({"": multiply}, 9, device)[""]


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            fields = [row.split(":", 1) for row in file if row.startswith("model name")]
        return f"{fields[0][1].strip()}, {os.cpu_count()} cores"
    except (OSError, IndexError):
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"

"""Times, memory and arithmetic of callables."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from clip import fused


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
    # PyTorch's counter doesn't know fused.py's product, nor an older one a CPU's attention.
    known = {
        getattr(operators, name): formula
        for operators, name, formula in (
            (torch.ops.mkldnn, "_linear_pointwise", _linear_flop),
            (torch.ops.aten, _CPU_ATTENTION, _attention_flop),
            (torch.ops.aten, f"{_CPU_ATTENTION}_backward", _attention_backward_flop),
        )
        if hasattr(operators, name)
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        call()
    return counter.get_total_flops() / 1e9


_CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


def _linear_flop(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]


def _attention_flop(q: torch.Size, k: torch.Size, *_: object, **__: object) -> int:
    """Scores and mixing. q: (…,L,E), k: (…,S,E)."""
    return 2 * 2 * math.prod(q) * k[-2]


def _attention_backward_flop(_grad: torch.Size, q: torch.Size, k: torch.Size, *_, **__) -> int:
    """The scores again, and the gradients of weights, values, queries and keys."""
    return 5 * 2 * math.prod(q) * k[-2]


def matmul_gflops(device: torch.device, dtype: torch.dtype, width: int = 1024) -> float:
    """The rate of a plain matrix product here, in 1e9 operations per second: the floor's unit."""
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    repeats = 100 if device.type == "cuda" else 1

    def multiply() -> None:
        for _ in range(repeats):
            a @ b

    return 2e-9 * width**3 * repeats / interleaved({"": multiply}, 9, device)[""]


def onednn_ratios() -> dict[str, float]:
    """PyTorch's own time over oneDNN's for products of so many multiplications, on this CPU.

    What clip/fused.py chooses between; empty where there is nothing to choose.
    """
    if not fused.has_onednn():
        return {}
    ratios = {}
    for exponent in (22, 24, 26, 27, 28, 30):
        weight = torch.randn(512, 512)
        x = torch.randn(2**exponent // weight.numel(), 512)
        repeats = max(1, 2 ** (26 - exponent))
        times = interleaved(
            {
                name: partial(_repeat, partial(call, x, weight, None), repeats)
                for name, call in (("own", F.linear), ("onednn", fused.by_onednn))
            },
            9,
            x.device,
        )
        ratios[f"2^{exponent}"] = times["own"] / times["onednn"]
    return ratios


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


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

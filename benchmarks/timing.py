"""Times, memory and arithmetic of callables."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from clip import fused


class Time(NamedTuple):
    """Of one call, in seconds: on the clock, and of all of the process's threads on their cores.

    On a busy machine the second scatters less.
    """

    wall: float
    cpu: float


def timed(call: Callable[[], object], device: torch.device) -> Time:
    """How long one call takes, on a GPU until it is done there; or the `Time` that it gives."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started, used = time.perf_counter(), time.process_time()
    given = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if isinstance(given, Time):  # another process's
        return given
    return Time(time.perf_counter() - started, time.process_time() - used)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warm: bool = False,
) -> dict[str, Time]:
    """Median times of each call; they take turns, so that a busy machine is busy for all.

    warm: each has been called before.
    """
    for call in () if warm else calls.values():
        call()  # memory is allocated, kernels are chosen
    times: dict[str, list[Time]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(timed(call, device))
    return {name: median(values) for name, values in times.items()}


def median(times: Iterable[Time]) -> Time:
    """Of each of the two."""
    return Time(*map(statistics.median, zip(*times, strict=True)))


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


def matmul_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """The highest rate of a matrix product found here, in 1e9 operations per second.

    Of products of several sizes, by whichever library is faster: the floor's unit.
    """
    rates = []
    for width in (512, 1024, 2048):
        a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
        repeats = 100 if device.type == "cuda" else 1
        calls: dict[str, Callable[[], object]] = {"own": partial(torch.mm, a, b)}
        if device.type == "cpu" and dtype == torch.float32 and fused.has_onednn():
            calls["onednn"] = partial(fused.by_onednn, a, b, None)
        repeated = {name: partial(_repeat, call, repeats) for name, call in calls.items()}
        for each in range(5):
            for call in repeated.values():
                took = timed(call, device).wall
                rates += [2e-9 * width**3 * repeats / took] if each else []
    return max(rates)


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
        ratios[f"2^{exponent}"] = times["own"].wall / times["onednn"].wall
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

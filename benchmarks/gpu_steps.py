"""Steps on a GPU: eager and as a CUDA graph, in two precisions, with their memory; a profile."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from tuning.cuda_graphs import GraphedStep
from tuning.step import BatchLosses, TrainingStep, scaled_update

from . import timing
from .method_setup import MethodSetup, Settings, images, method_names


def every_method(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """A row for each method and precision; one that fails has its error as its remark."""
    rows = []
    for name in args.methods or method_names():
        for precision in ("fp32",) if args.cpu else ("fp16", "bf16"):
            row: dict[str, Any] = {"method": name, "precision": precision}
            try:
                row |= _measured(_settings(args, name, precision), args.repeats, device)
            except Exception as error:  # the others go on
                row["remark"] = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
            rows.append(row)
            print(row, flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return rows


def _settings(args: argparse.Namespace, name: str, precision: str) -> Settings:
    size = {"backbone": "tiny", "classes": 3} if args.cpu else {"classes": 100}
    return Settings(name, precision=precision, **size)


def _measured(settings: Settings, repeats: int, device: torch.device) -> dict[str, Any]:
    setup = MethodSetup(settings, settings.model(), fast=True)
    if not setup.trains:
        return {"remark": "nothing to train"}
    if setup.method.has_own_step():
        return {"remark": "a step of its own"}
    batch = _batch(setup)
    steps = {"eager": step_of(setup, graph=False)}
    if device.type == "cuda":
        steps["graph"] = step_of(setup, graph=True)
        torch.cuda.reset_peak_memory_stats(device)
    steps["eager"](batch)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    calls = {name: lambda step=step: step(batch) for name, step in steps.items()}
    found: dict[str, Any] = {"peak_mb": peak, **timing.interleaved(calls, repeats, device)}
    if "graph" in steps:
        gradients = steps["graph"].gradients
        if isinstance(gradients, GraphedStep) and not gradients.works:
            found["remark"] = "no graph: the reason is printed"
    return found


def step_of(setup: MethodSetup, graph: bool) -> TrainingStep:
    """The method's training step, its kernels replayed as a graph or not."""
    return TrainingStep(
        BatchLosses(setup.method.train(), setup.autocast),
        setup.optim.zero_grad,
        setup.scaler.scale,
        lambda: scaled_update([setup.optim], setup.scaler),
        (lambda compute: GraphedStep(compute, setup.method.trained().values())) if graph else None,
    )


def _batch(setup: MethodSetup) -> dict[str, torch.Tensor]:
    image = images(setup.batch, setup.model)
    given, known = setup.ahead(image)
    label = torch.arange(setup.batch, device=setup.device) % len(setup.method.classes.keys)
    batch = setup.joined({"image": given, "label": label, **known})
    return {**batch, **setup.method.drawn(setup.generator, 1.0)}


def profile(args: argparse.Namespace, device: torch.device, steps: int = 10) -> dict[str, Any]:
    """The ten kernels (on a CPU, operators) that take most of some steps of the first method."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    name = (args.methods or ["DePT_CoOp"])[0]
    setup = MethodSetup(
        settings := _settings(args, name, "fp32" if args.cpu else "fp16"),
        settings.model(),
        fast=True,
    )
    step, batch = step_of(setup, graph=False), _batch(setup)
    step(batch)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profiled(activities=activities) as found:
        for _ in range(steps):
            step(batch)
        if on_gpu:
            torch.cuda.synchronize(device)
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda e: getattr(e, attribute), reverse=True)
    total = sum(getattr(event, attribute) for event in events)
    kernels = [
        {"name": event.key, "calls": event.count, "ms": getattr(event, attribute) / 1000}
        for event in events[:10]
    ]
    return {"method": name, "steps": steps, "ms": total / 1000, "kernels": kernels}

"""One method on both paths, timed: its steps, its evaluation, a public implementation beside them.

Shape letters: tuning/method.py's.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import timing
from .against import Public
from .method_setup import MethodSetup, Settings, images
from .timing import Time


class Pair:
    """One method on both paths, from the same parameters.

    rate: the highest of a matrix product here, in 1e9 operations per second.
    """

    def __init__(self, settings: Settings, rate: float, against: Path | None = None) -> None:
        model = settings.model()
        self.settings = settings
        self.plain = MethodSetup(settings, model, fast=False)
        self.fast = MethodSetup(settings, model, fast=True)
        self.device = self.plain.device
        self.model = model
        self.rate = rate
        self.against = against

    def steps(self, repeats: int) -> dict[str, Any]:
        """Time training steps, in lockstep on both paths."""
        batch = self.plain.batch
        image = images(batch, self.model)
        label = torch.arange(batch, device=self.device) % len(self.plain.method.classes.keys)
        given, known = self.fast.ahead(image)
        losses: dict[str, list[torch.Tensor]] = {"plain": [], "fast": []}
        calls = {
            "plain": lambda: losses["plain"].append(self.plain.step(image, label, {})),
            "fast": lambda: losses["fast"].append(self.fast.step(given, label, known)),
        }
        work = {name: timing.gflop(call) for name, call in calls.items()}
        with self.public(1) as public:
            every = {**calls, **({"public": lambda: public.call("step")} if public else {})}
            if public:
                every["public"]()
            times = timing.interleaved(every, repeats, self.device, warm=True)
        views = Time(0.0, 0.0)
        if self.fast.features_for_images or self.fast.features_with_images:
            many = images(self.fast.views_at_once, self.model)
            encode = {"": lambda: self.fast.encode(many)}
            work["views"] = timing.gflop(encode[""]) * batch / len(many)
            whole = timing.interleaved(encode, 1, self.device, warm=True)[""]
            views = Time(*(x * batch / len(many) for x in whole))
        with_views = Time(*map(sum, zip(times["fast"], views, strict=True)))
        pairs = zip(losses["plain"], losses["fast"], strict=True)
        floor = work["fast"] / self.rate
        found = {
            "step": against(times["plain"].wall, times["fast"].wall),
            "step_cpu": against(times["plain"].cpu, times["fast"].cpu),
            "step_with_views": against(times["plain"].wall, with_views.wall),
            "image_share": (views.wall + self._image_in_step(image)) / with_views.wall,
            "floor": against(times["plain"].wall, floor),
            "gflop": work,
            "loss_difference": max(abs(float(a) - float(b)) for a, b in pairs),
        }
        if "public" in times:
            found["step_public"] = against(times["public"].wall, times["fast"].wall)
            found["step_public_cpu"] = against(times["public"].cpu, times["fast"].cpu)
        return found

    def _image_in_step(self, image: torch.Tensor) -> float:
        """Seconds of the image tower within a step of the fast path, there and back."""
        if self.fast.features_for_images:
            return 0.0

        def there_and_back() -> None:
            features = self.fast.method.train().encode_image(image)
            if features.requires_grad:
                features.float().sum().backward()

        with self.fast.autocast():
            return timing.interleaved({"": there_and_back}, 1, self.device)[""].wall

    def evaluation(self, args: argparse.Namespace) -> dict[str, Any]:
        """Time evaluation, put together from the image tower and the scoring of a batch.

        The plain path's text features are computed at every batch, the fast path's once.
        """
        plain, fast = self.plain, self.fast
        image = images(args.images, self.model, seed=1)
        with torch.no_grad():
            difference = (fast.evaluate([image]) - plain.evaluate([image])).abs().max()
        # Where every image has its own text features, cost goes with images, not with batches.
        rows = 1 if plain.text_per_image else args.test_batch
        with torch.no_grad():
            features = plain.encoded(rows)
        calls = {
            "plain image": lambda: plain.encode_tested(image),
            "fast image": lambda: fast.encode_tested(image),
            "plain score": lambda: plain.score(features, fresh=True),
            "plain score again": lambda: plain.score(features, fresh=False),
            "fast score": lambda: fast.score(features, fresh=True),
            "fast score again": lambda: fast.score(features, fresh=False),
        }
        with self.public(args.test_batch) as public:
            if public:
                calls["public"] = lambda: public.call("test")
            times = timing.interleaved(calls, args.repeats, self.device)
        batches = math.ceil(args.tested / rows)

        def whole(path: str, texts: int, encoded: bool = True) -> Time:
            """All test images; the text features are computed for so many of the batches."""
            image_, first, again = (times[f"{path} {x}"] for x in ("image", "score", "score again"))
            share = args.tested / len(image) * encoded
            parts = zip(image_, first, again, strict=True)
            return Time(*(i * share + f * texts + a * (batches - texts) for i, f, a in parts))

        slow, quick = whole("plain", batches), whole("fast", 1)
        result = {
            "evaluation": against(slow.wall, quick.wall),
            "evaluation_cpu": against(slow.cpu, quick.cpu),
            "evaluation_text_kept": against(whole("plain", 1).wall, quick.wall),
            "logit_difference": float(difference),
        }
        if fast.features_for_images:
            result["evaluation_cached"] = against(slow.wall, whole("fast", 1, False).wall)
        if "public" in times:
            all_of_them = times["public"].wall * args.tested / args.test_batch
            result["evaluation_public"] = against(all_of_them, quick.wall)
        return result

    @contextmanager
    def public(self, test_batch: int) -> Iterator[Public | None]:
        """The public implementation, while it is timed; None where there is none."""
        if self.against is None:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="against-") as folder:
            file = Path(folder) / "backbone.pt"
            state = {key: value.cpu() for key, value in self.model.state_dict().items()}
            torch.save(state, file)
            given = {
                "trainer": self.settings.trainer,
                "classnames": list(self.plain.method.classes.names),
                "batch": self.plain.batch,
                "test_batch": test_batch,
                "precision": self.settings.precision,
                "resolution": self.model.visual.input_resolution,
                # Where its code asks for a released name; what it loads is the file.
                "name": {"tiny": "ViT-B/16"}.get(self.settings.backbone, self.settings.backbone),
                "backbone": str(file),
            }
            public = Public(self.against, given)
            try:
                yield public
            finally:
                public.close()


def against(plain: float | None, fast: float) -> dict[str, float | None]:
    """Two values and their ratio."""
    return {"plain": plain, "fast": fast, "ratio": plain / fast if plain and fast else None}

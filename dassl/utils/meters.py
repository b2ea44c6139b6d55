"""Running averages that never wait for the GPU until they are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class AverageMeter:
    """The mean of the values given so far.

    A value may be a tensor with one element: it is added up on its own device, and only reading
    `val` or `avg` copies it to the host.

    Args:
        ema: average exponentially with weight 0.1 for the new value, instead of evenly.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self._val: float | torch.Tensor = 0.0
        self._avg: float | torch.Tensor = 0.0
        self._sum: float | torch.Tensor = 0.0
        self.count = 0

    def update(self, val: float | torch.Tensor, n: int = 1) -> None:
        """Add `val`, the mean of `n` values."""
        if hasattr(val, "detach"):
            val = val.detach().double().reshape(())  # a mean over an epoch keeps all its digits
        first = self.count == 0
        self._val = val
        self._sum = self._sum + val * n
        self.count += n
        if self.ema:
            self._avg = val if first else self._avg * 0.9 + val * 0.1

    def go_on(self, total: float, count: int) -> None:
        """Take over a sum of `count` values."""
        self._sum, self.count = total, count

    @property
    def val(self) -> float:
        """The last value."""
        return float(self._val)

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return float(self._sum)

    @property
    def avg(self) -> float:
        """The average; 0 if there are no values."""
        if self.ema:
            return float(self._avg)
        return float(self._sum) / self.count if self.count else 0.0


class MetricMeter:
    """One `AverageMeter` per name; prints as "name last (average)"."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | torch.Tensor] | None) -> None:
        """Add one value per name. Raises TypeError if it is not a mapping."""
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError("MetricMeter.update takes a dict of names and values")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def state_dict(self) -> dict[str, list[float]]:
        """Return sum and count by name, as plain values."""
        return {name: [meter.sum, meter.count] for name, meter in self.meters.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from what `state_dict` returned."""
        for name, (total, count) in state.items():
            self.meters[name].go_on(total, int(count))

    def __str__(self) -> str:
        return self.delimiter.join(
            f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items()
        )

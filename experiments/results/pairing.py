"""Whether a mean difference of pairs is more than chance: a sign-flip test, and an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help comes without it
    import numpy as np

EXACT = 16  # pairs: of so many all 2^n signs are tried, of more a sample
SAMPLED = 99_999
_SEED = 1
_CHUNK = 4096


@dataclass(frozen=True)
class Difference:
    """A mean difference in points with its 95 % interval, and the two-sided p of the test."""

    mean: float
    low: float
    high: float
    p: float
    pairs: int


def compared(differences: Sequence[float]) -> Difference:
    """Return what n ≥ 2 differences of pairs say.

    p is that of the permutation test that flips signs (Fisher 1935): the share of all sign patterns
    whose sum is as far from 0, at least. The interval is Student's, mean ± t_{.975, n−1} s/√n.
    """
    import numpy as np

    values = np.asarray(differences, dtype=float)
    mean, half = float(values.mean()), _half_width(values)
    return Difference(mean, mean - half, mean + half, sign_flip_p(values), len(values))


def _half_width(values: np.ndarray) -> float:
    from scipy.special import stdtrit

    n = len(values)
    return float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / n**0.5)


def sign_flip_p(values: np.ndarray) -> float:
    """Return the two-sided p: exact for n ≤ EXACT, else from SAMPLED patterns, the same each time.

    The observed pattern counts among the sampled ones, so that p is never 0.
    """
    import numpy as np

    n, observed = len(values), abs(values.sum())
    least = observed - 1e-9 * max(1.0, float(np.abs(values).sum()))  # sums of one value, rounded
    if n <= EXACT:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ values) >= least))
    generator, extreme = np.random.Generator(np.random.PCG64(_SEED)), 0
    for start in range(0, SAMPLED, _CHUNK):
        bits = generator.integers(0, 2, (min(_CHUNK, SAMPLED - start), n))
        extreme += int(np.sum(np.abs((1 - 2 * bits) @ values) >= least))
    return (extreme + 1) / (SAMPLED + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many there are (Holm 1979), in their order."""
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = worst
    return adjusted

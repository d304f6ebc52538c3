"""The free energy of empirical variational Bayes matrix factorization as a function of the noise level.

With the notation of `lrzip.linalg.vbmf`, twice the free energy over M is, up to constants,

    f(c) = L log c + Σ_{x ≤ x̲} x + Σ_{x > x̲} [1 + α + α / τ + log(1 + τ) + α log(1 + τ / α)],    c = M σ².

It has many local minima, all of them fixed points of R(c) = Σ (γ² − c τ) / L, where τ is 0 for singular values that are
not kept. Two properties make the global minimum cheap to find. R is non-decreasing, so iterates from both ends of an
interval enclose every fixed point in it. Between two levels at which a singular value crosses the threshold,
L (c − R(c)) is concave, so at most one minimum lies there, and Newton's method from the left converges to it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
EPS = float(np.finfo(np.float64).eps)
# Every step of the enclosure is valid, so these two determine the cost alone, not the precision of the minimum.
_FEW_PIECES = 5
_STILL = 1e-4


def keep_threshold(alpha: float) -> float:
    """Return the threshold x̲ = (1 + τ)(1 + α / τ) at the root τ of Φ(τ) + Φ(τ / α), with Φ(z) = log(1 + z) / z − ½.

    Args:
        alpha: α, above 0 and at most 1.
    """
    # Φ is decreasing and has its root at 2.51, so the root of the sum lies between 2.51 α and 2.51.
    low, high = math.log(2 * alpha), math.log(3)
    for _ in range(60):
        middle = (low + high) / 2
        tau = math.exp(middle)
        is_below = math.log1p(tau) / tau + math.log1p(tau / alpha) * alpha / tau > 1
        low, high = (middle, high) if is_below else (low, middle)
    tau = math.exp(low)
    return (1 + tau) * (1 + alpha / tau)


def level_bounds(squares: Array, rest: float, size: int, alpha: float, threshold: float) -> tuple[float, float]:
    """Return an interval that contains the best c = M σ². It begins at 0 only if the best c is 0: no noise at all.

    Args:
        squares: Given γ², descending.
        rest: Sum of all other γ².
        size: L.
        alpha: α.
        threshold: x̲.
    """
    most = min(math.ceil(size / (1 + alpha)) - 1, len(squares))
    tail = float(squares[most:].sum()) + rest
    low = max(float(squares[most : most + 1].sum()) / threshold, tail / (size - most))
    high = (float(squares.sum()) + rest) / size
    return min(low, high), high


def count_above(squares: Array, limit: float) -> int:
    """Return how many of some descending numbers are above a limit."""
    return int((-squares).searchsorted(-limit))


def signals(squares: Array, level: Array | float, alpha: float) -> Array:
    """Return c τ for γ², the larger root t of t² − (γ² − (1 + α) c) t + α c² = 0."""
    twice = squares - (1 + alpha) * level
    roots: Array = (twice + np.sqrt(np.maximum(twice * twice - 4 * alpha * level * level, 0))) / 2
    return roots


@dataclass(frozen=True)
class FreeEnergy:
    """Twice the free energy over M, as a function of the noise level c.

    In methods, `levels` and `ranks` have shape (count, 1).

    Attributes:
        squares: (head,) γ², descending: those that exceed the threshold at some level of interest.
        tails: (head + 1,) sums of all γ² from each of them on; the last is the sum of all others.
        size: L.
        alpha: α.
        threshold: x̲.
    """

    squares: Array
    tails: Array
    size: int
    alpha: float
    threshold: float

    def rank(self, level: float) -> int:
        """Return how many singular values are kept."""
        return count_above(self.squares, self.threshold * level)

    def values(self, levels: Array) -> Array:
        """Return f (count,)."""
        ranks = np.array([[self.rank(level)] for level in levels[:, 0]])
        kept = self._kept(ranks)
        with np.errstate(all="ignore"):  # for singular values that are not kept
            tau = signals(self.squares, levels, self.alpha) / levels
            alpha = self.alpha
            signal = 1 + alpha + alpha / tau + np.log1p(tau) + alpha * np.log1p(tau / alpha)
        found: Array = self.size * np.log(levels) + self.tails[ranks] / levels
        found += np.where(kept, signal, 0).sum(-1, keepdims=True)
        return found[:, 0]

    def noise_at(self, level: float) -> float:
        """Return L R(c) = Σ (γ² − c τ) without cancellation."""
        rank = self.rank(level)
        kept = signals(self.squares[:rank], level, self.alpha)
        others = self.alpha * level * (level / kept)
        return (1 + self.alpha) * level * rank + float(others.sum()) + float(self.tails[rank])

    def noise(self, levels: Array, ranks: Array) -> tuple[Array, Array]:
        """Return L R(c) for given ranks, and its derivative by c, both (count, 1)."""
        kept = self._kept(ranks)
        with np.errstate(all="ignore"):  # for singular values that are not kept
            signal = signals(self.squares, levels, self.alpha)
            others = self.alpha * levels * (levels / signal)  # c α / τ; signal + others = γ² − (1 + α) c
            slopes = (2 * self.alpha * levels + (1 + self.alpha) * others) / (signal - others)
        share = (1 + self.alpha) * ranks
        noise = share * levels + np.where(kept, others, 0).sum(-1, keepdims=True) + self.tails[ranks]
        return noise, share + np.where(kept, slopes, 0).sum(-1, keepdims=True)

    def _kept(self, ranks: Array) -> Array:
        kept: Array = np.arange(len(self.squares)) < ranks
        return kept


def minimize(energy: FreeEnergy, low: float, high: float) -> float:
    """Return the c in [low, high] with the least free energy."""
    low, high = _enclose(energy, low, high)
    ranks = np.arange(energy.rank(high), energy.rank(low) + 1)
    edges = np.concatenate([[high], energy.squares / energy.threshold, [low]]).clip(low, high)
    found = _climb(energy, ranks[:, None], edges[ranks + 1][:, None], edges[ranks][:, None])
    return float(found[energy.values(found).argmin(), 0])


def _enclose(energy: FreeEnergy, low: float, high: float) -> tuple[float, float]:
    """Narrow an interval around all fixed points of R in it, until few pieces are left or it stops moving."""
    settled = False
    while not settled and energy.rank(low) - energy.rank(high) >= _FEW_PIECES:
        # Sorted, because rounding can swap the ends of an interval without width.
        ends = sorted(energy.noise_at(level) / energy.size for level in (low, high))
        settled = abs(ends[0] - low) <= _STILL * low and abs(ends[1] - high) <= _STILL * high
        low, high = ends
    return low, high


def _climb(energy: FreeEnergy, ranks: Array, left: Array, right: Array) -> Array:
    """Return the minimum of each piece [left, right] of constant rank, or some point of it if it has none.

    The tangent of a concave function lies above it, so Newton's method never passes the root from the left.
    """
    found, moved = left, True
    while moved:
        noise, slopes = energy.noise(found, ranks)
        step = (noise - energy.size * found) / (energy.size - slopes)
        before, found = found, np.minimum(found + np.maximum(step, 0), right)
        moved = bool((found - before > 4 * EPS * found).any())
    return found

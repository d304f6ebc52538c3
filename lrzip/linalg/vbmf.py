"""The rank of a matrix under white noise of unknown strength, by empirical variational Bayes matrix factorization.

The observed matrix V (m, n) is a product of two Gaussian factors plus noise of variance σ². With L = min(m, n),
M = max(m, n), α = L / M and x = γ² / (M σ²) for every singular value γ of V, the free energy is minimal over all else
where a γ is kept if x > x̲ and is then shrunk to γ τ(x) / x, τ being the larger root of x = (1 + τ)(1 + α / τ). Twice
the free energy over M is, up to constants,

    f(c) = L log c + Σ_{x ≤ x̲} x + Σ_{x > x̲} [1 + α + α / τ + log(1 + τ) + α log(1 + τ / α)],    c = M σ².

It has many local minima, all of them fixed points of R(c) = Σ (γ² − c τ) / L, where τ is 0 for what is not kept. Two
properties make the global one cheap: R does not decrease, so iterates from both ends of an interval enclose every fixed
point in it; and between two places where a singular value crosses the threshold, L (c − R(c)) is concave, so at most
one minimum lies there, and Newton's method from the left ends in it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
_EPS = torch.finfo(torch.float64).eps
# Every step of the enclosure holds, so where it ends is a matter of cost alone, not of how exact the minimum becomes.
_FEW_PIECES = 5
_STILL = 1e-4


@dataclass(frozen=True)
class NoiseRank:
    """What of a matrix stands out from white noise.

    Attributes:
        rank: Number of singular values that do; may be 0.
        noise_variance: Variance of the noise in one entry; 0 where there is none.
        values: (rank,) float64, the singular values that do, shrunk by what noise adds to them.
    """

    rank: int
    noise_variance: float
    values: Tensor


def noise_rank(values: Tensor, shape: tuple[int, int], *, residual: float = 0.0) -> NoiseRank:
    """Return the rank of empirical variational Bayes matrix factorization, with the variance of the noise estimated.

    The global minimum of the free energy in closed form but for one number, the noise variance (Nakajima, Sugiyama,
    Babacan & Tomioka 2013, JMLR 14:1-37), with the threshold and the bounds of the noise variance of Nakajima, Tomioka,
    Sugiyama & Babacan 2015 (JMLR 16:3757-3811). It errs on the low side: the rank is 0 where nothing stands out, as in
    every matrix with one row or column, and always below mn / (m + n), so factors of that rank are smaller than the
    matrix. What has that rank or more cannot be told from noise.

    Args:
        values: Singular values, float64 on the CPU, descending: all min(m, n) of them, or the leading ones. Squares
            below max(m, n) · eps · σ₁² count as rounding, so as zero.
        shape: (m, n).
        residual: Sum of the squares of the singular values that are not given.

    Returns:
        The rank, the noise variance and the shrunk singular values.
    """
    size, length = min(shape), max(shape)
    scale = float(values[0])
    if scale == 0:
        return NoiseRank(0, 0.0, values[:0])
    # Arrays are short, so that what counts is the overhead of each operation, which NumPy has less of.
    squares = (values.numpy() / scale) ** 2
    squares = np.where(squares > length * _EPS, squares, 0)
    rest = residual / scale / scale
    alpha = size / length
    threshold = _threshold(alpha)
    low, high = _bounds(squares, rest, size, alpha, threshold)
    head = _count_above(squares, threshold * low)
    tails = np.append(squares[:head][::-1].cumsum()[::-1], 0.0) + float(squares[head:].sum()) + rest
    energy = _FreeEnergy(squares[:head], tails, size, alpha, threshold)
    level = _minimize(energy, low, high) if low else 0.0
    rank = energy.rank(level)
    kept = squares[:rank]
    shrunk = torch.from_numpy(_signals(kept, level, alpha) / kept)
    return NoiseRank(rank, level / length * scale * scale, values[:rank] * shrunk)


def _threshold(alpha: float) -> float:
    """Return x̲ = (1 + τ)(1 + α / τ) at the root of Φ(τ) + Φ(τ / α), Φ(z) = log(1 + z) / z − ½, which falls."""
    # Φ alone is zero at 2.51, so the root lies between 2.51 α and 2.51.
    low, high = math.log(2 * alpha), math.log(3)
    for _ in range(60):
        middle = (low + high) / 2
        tau = math.exp(middle)
        falls_later = math.log1p(tau) / tau + math.log1p(tau / alpha) * alpha / tau > 1
        low, high = (middle, high) if falls_later else (low, middle)
    tau = math.exp(low)
    return (1 + tau) * (1 + alpha / tau)


def _bounds(squares: Array, rest: float, size: int, alpha: float, threshold: float) -> tuple[float, float]:
    """Return an interval that holds the best c. It begins at 0 only where the best c is 0: there is no noise at all."""
    most = min(math.ceil(size / (1 + alpha)) - 1, len(squares))
    tail = float(squares[most:].sum()) + rest
    low = max(float(squares[most : most + 1].sum()) / threshold, tail / (size - most))
    high = (float(squares.sum()) + rest) / size
    return min(low, high), high


def _count_above(squares: Array, limit: float) -> int:
    """Return how many of some descending numbers are above a limit."""
    return int((-squares).searchsorted(-limit))


def _signals(squares: Array, level: Array | float, alpha: float) -> Array:
    """Return c τ for γ², the larger root t of t² − (γ² − (1 + α) c) t + α c² = 0."""
    twice = squares - (1 + alpha) * level
    roots: Array = (twice + np.sqrt(np.maximum(twice * twice - 4 * alpha * level * level, 0))) / 2
    return roots


@dataclass(frozen=True)
class _FreeEnergy:
    """Twice the free energy over M, as a function of the noise level c; `levels` and `ranks` are (count, 1).

    Attributes:
        squares: (head,) γ², descending, those that may be above the threshold.
        tails: (head + 1,) sums of all γ² from each of them on; the last is of all others.
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
        return _count_above(self.squares, self.threshold * level)

    def values(self, levels: Array) -> Array:
        """Return f (count,)."""
        ranks = np.array([[self.rank(level)] for level in levels[:, 0]])
        kept = self._kept(ranks)
        with np.errstate(all="ignore"):  # of those that are not kept
            tau = _signals(self.squares, levels, self.alpha) / levels
            alpha = self.alpha
            signal = 1 + alpha + alpha / tau + np.log1p(tau) + alpha * np.log1p(tau / alpha)
        found: Array = self.size * np.log(levels) + self.tails[ranks] / levels
        found += np.where(kept, signal, 0).sum(-1, keepdims=True)
        return found[:, 0]

    def noise_at(self, level: float) -> float:
        """Return L R(c) = Σ (γ² − c τ), free of cancellation."""
        rank = self.rank(level)
        signals = _signals(self.squares[:rank], level, self.alpha)
        others = self.alpha * level * (level / signals)
        return (1 + self.alpha) * level * rank + float(others.sum()) + float(self.tails[rank])

    def noise(self, levels: Array, ranks: Array) -> tuple[Array, Array]:
        """Return L R(c) with given ranks, and its derivative by c, both (count, 1)."""
        kept = self._kept(ranks)
        with np.errstate(all="ignore"):  # of those that are not kept
            signals = _signals(self.squares, levels, self.alpha)
            others = self.alpha * levels * (levels / signals)  # c α / τ; both sum up to γ² − (1 + α) c
            slopes = (2 * self.alpha * levels + (1 + self.alpha) * others) / (signals - others)
        share = (1 + self.alpha) * ranks
        noise = share * levels + np.where(kept, others, 0).sum(-1, keepdims=True) + self.tails[ranks]
        return noise, share + np.where(kept, slopes, 0).sum(-1, keepdims=True)

    def _kept(self, ranks: Array) -> Array:
        kept: Array = np.arange(len(self.squares)) < ranks
        return kept


def _minimize(energy: _FreeEnergy, low: float, high: float) -> float:
    """Return the c in [low, high] with the least free energy."""
    low, high = _enclose(energy, low, high)
    ranks = np.arange(energy.rank(high), energy.rank(low) + 1)
    edges = np.concatenate([[high], energy.squares / energy.threshold, [low]]).clip(low, high)
    found = _climb(energy, ranks[:, None], edges[ranks + 1][:, None], edges[ranks][:, None])
    return float(found[energy.values(found).argmin(), 0])


def _enclose(energy: _FreeEnergy, low: float, high: float) -> tuple[float, float]:
    """Narrow an interval around all fixed points of R in it, until few pieces are left or it moves no more."""
    settled = False
    while not settled and energy.rank(low) - energy.rank(high) >= _FEW_PIECES:
        # Sorted, because rounding can swap the ends of an interval of no width.
        ends = sorted(energy.noise_at(level) / energy.size for level in (low, high))
        settled = abs(ends[0] - low) <= _STILL * low and abs(ends[1] - high) <= _STILL * high
        low, high = ends
    return low, high


def _climb(energy: _FreeEnergy, ranks: Array, left: Array, right: Array) -> Array:
    """Return the minimum of each piece [left, right] with a given rank, or some point of it where it has none.

    The tangent of a concave function lies above it, so Newton's method never passes the root from the left.
    """
    found, moved = left, True
    while moved:
        noise, slopes = energy.noise(found, ranks)
        step = (noise - energy.size * found) / (energy.size - slopes)
        before, found = found, np.minimum(found + np.maximum(step, 0), right)
        moved = bool((found - before > 4 * _EPS * found).any())
    return found

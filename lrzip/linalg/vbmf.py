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

import torch
from torch import Tensor

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
    squares = (values / scale).square()
    squares = torch.where(squares > length * _EPS, squares, 0)
    rest = residual / scale / scale
    alpha = size / length
    threshold = _threshold(alpha)
    low, high = _bounds(squares, rest, size, alpha, threshold)
    head = int((squares > threshold * low).sum())
    energy = _FreeEnergy(squares[:head], float(squares[head:].sum()) + rest, size, alpha, threshold)
    level = _minimize(energy, low, high) if low else 0.0
    rank = int(energy.ranks(torch.tensor(level, dtype=torch.float64)))
    kept = squares[:rank]
    return NoiseRank(rank, level / length * scale * scale, values[:rank] * _signals(kept, level, alpha) / kept)


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


def _bounds(squares: Tensor, rest: float, size: int, alpha: float, threshold: float) -> tuple[float, float]:
    """Return an interval that holds the best c. It begins at 0 only where the best c is 0: there is no noise at all."""
    most = min(math.ceil(size / (1 + alpha)) - 1, len(squares))
    tail = float(squares[most:].sum()) + rest
    low = max(float(squares[most : most + 1].sum()) / threshold, tail / (size - most))
    high = (float(squares.sum()) + rest) / size
    return min(low, high), high


def _signals(squares: Tensor, level: Tensor | float, alpha: float) -> Tensor:
    """Return c τ for γ², the larger root t of t² − (γ² − (1 + α) c) t + α c² = 0."""
    twice = squares - (1 + alpha) * level
    return (twice + (twice * twice - 4 * alpha * level * level).clamp(min=0).sqrt()) / 2


@dataclass(frozen=True)
class _FreeEnergy:
    """Twice the free energy over M, as a function of the noise level c; `levels` are (count,), `ranks` too.

    Attributes:
        squares: (head,) γ², descending, those that may be above the threshold.
        rest: Sum of all other γ².
        size: L.
        alpha: α.
        threshold: x̲.
    """

    squares: Tensor
    rest: float
    size: int
    alpha: float
    threshold: float

    def ranks(self, levels: Tensor) -> Tensor:
        """Return how many singular values are kept."""
        return (self.squares > self.threshold * levels[..., None]).sum(-1)

    def values(self, levels: Tensor) -> Tensor:
        """Return f (count,)."""
        kept = self._kept(self.ranks(levels))
        tau = _signals(self.squares, levels[:, None], self.alpha) / levels[:, None]
        alpha = self.alpha
        signal = 1 + alpha + alpha / tau + torch.log1p(tau) + alpha * torch.log1p(tau / alpha)
        terms = torch.where(kept, signal, self.squares / levels[:, None])
        return self.size * levels.log() + self.rest / levels + terms.sum(-1)

    def noise(self, levels: Tensor, ranks: Tensor) -> Tensor:
        """Return L R(c) = Σ (γ² − c τ) (count,) with given ranks, free of cancellation."""
        level = levels[:, None]
        _, others = self._roots(level)
        energies = torch.where(self._kept(ranks), (1 + self.alpha) * level + others, self.squares)
        return energies.sum(-1) + self.rest

    def noise_slopes(self, levels: Tensor, ranks: Tensor) -> Tensor:
        """Return the derivative of `noise` by c (count,)."""
        level = levels[:, None]
        signals, others = self._roots(level)
        slopes = (1 + self.alpha) + (2 * self.alpha * level + (1 + self.alpha) * others) / (signals - others)
        return torch.where(self._kept(ranks), slopes, 0).sum(-1)

    def _roots(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return c τ and c α / τ, which sum up to γ² − (1 + α) c."""
        signals = _signals(self.squares, level, self.alpha)
        return signals, self.alpha * level * (level / signals)

    def _kept(self, ranks: Tensor) -> Tensor:
        return torch.arange(len(self.squares)) < ranks[:, None]


def _minimize(energy: _FreeEnergy, low: float, high: float) -> float:
    """Return the c in [low, high] with the least free energy."""
    levels = _enclose(energy, torch.tensor([low, high], dtype=torch.float64))
    most, least = energy.ranks(levels).tolist()
    ranks = torch.arange(least, most + 1)
    edges = torch.cat([levels[1:], energy.squares / energy.threshold, levels[:1]]).clamp(levels[0], levels[1])
    found = _climb(energy, ranks, edges[ranks + 1], edges[ranks])
    return float(found[energy.values(found).argmin()])


def _enclose(energy: _FreeEnergy, levels: Tensor) -> Tensor:
    """Narrow (low, high) around all fixed points of R between them, until few pieces are left or it moves no more."""
    settled = False
    while not settled:
        most, least = energy.ranks(levels).tolist()
        if most - least < _FEW_PIECES:
            break
        # Sorted, because rounding can swap the ends of an interval of no width.
        narrowed = (energy.noise(levels, energy.ranks(levels)) / energy.size).sort().values
        settled = bool(((narrowed - levels).abs() <= _STILL * levels).all())
        levels = narrowed
    return levels


def _climb(energy: _FreeEnergy, ranks: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return the minimum of each piece [left, right] with a given rank, or some point of it where it has none.

    The tangent of a concave function lies above it, so Newton's method never passes the root from the left.
    """
    found, moved = left, True
    while moved:
        step = (energy.noise(found, ranks) - energy.size * found) / (energy.size - energy.noise_slopes(found, ranks))
        before, found = found, (found + step.clamp(min=0)).minimum(right)
        moved = bool((found - before > 4 * _EPS * found).any())
    return found

"""The rank of a matrix under white noise of unknown variance, by empirical variational Bayes matrix factorization.

The observed matrix V (m, n) is a product of two Gaussian factors plus noise of variance σ². With L = min(m, n),
M = max(m, n) and α = L / M, the minimum of the free energy keeps a singular value γ of V if x = γ² / (M σ²)
exceeds a threshold x̲, and shrinks it to γ τ(x) / x, τ being the larger root of x = (1 + τ)(1 + α / τ). The minimum is
analytic except for the noise variance, which `lrzip.linalg.blocks.free_energy` computes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrzip.linalg.blocks.free_energy import (
    EPS,
    FreeEnergy,
    count_above,
    keep_threshold,
    level_bounds,
    minimize,
    signals,
)


@dataclass(frozen=True)
class NoiseRank:
    """The part of a matrix that is not explained by white noise.

    Attributes:
        rank: Number of singular values that are kept; may be 0.
        noise_variance: Variance of the noise in one element; 0 if there is none.
        values: (rank,) float64, the kept singular values, each shrunk by the contribution of the noise.
    """

    rank: int
    noise_variance: float
    values: Tensor


def noise_rank(values: Tensor, shape: tuple[int, int], *, residual: float = 0.0) -> NoiseRank:
    """Return the rank of empirical variational Bayes matrix factorization, with the noise variance estimated.

    This is the global minimum of the free energy, analytic except for the noise variance (Nakajima, Sugiyama, Babacan &
    Tomioka 2013, JMLR 14:1-37), with the threshold and the bounds on the noise variance of Nakajima, Tomioka, Sugiyama
    & Babacan 2015 (JMLR 16:3757-3811). The estimate errs on the low side: it is 0 if no singular value exceeds the
    threshold, as for every matrix with one row or column, and always below mn / (m + n), so factors of that rank
    are smaller than the matrix. A matrix of that rank or more cannot be distinguished from noise.

    Args:
        values: Singular values, float64 on the CPU, descending: all min(m, n) of them, or the leading ones. Squares
            below max(m, n) · eps · σ₁² are treated as zero.
        shape: (m, n).
        residual: Sum of the squares of the singular values that are not given.

    Returns:
        The rank, the noise variance and the shrunk singular values.
    """
    size, length = min(shape), max(shape)
    scale = float(values[0])
    if scale == 0:
        return NoiseRank(0, 0.0, values[:0])
    # NumPy instead of torch: the arrays are short, and NumPy has less overhead per operation.
    squares = (values.numpy() / scale) ** 2
    squares = np.where(squares > length * EPS, squares, 0)
    rest = residual / scale / scale
    alpha = size / length
    threshold = keep_threshold(alpha)
    low, high = level_bounds(squares, rest, size, alpha, threshold)
    head = count_above(squares, threshold * low)
    tails = np.append(squares[:head][::-1].cumsum()[::-1], 0.0) + float(squares[head:].sum()) + rest
    energy = FreeEnergy(squares[:head], tails, size, alpha, threshold)
    level = minimize(energy, low, high) if low else 0.0
    rank = energy.rank(level)
    kept = squares[:rank]
    shrunk = torch.from_numpy(signals(kept, level, alpha) / kept)
    return NoiseRank(rank, level / length * scale * scale, values[:rank] * shrunk)

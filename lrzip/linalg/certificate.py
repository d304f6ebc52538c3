"""Proofs, after the fact, of how near a low-rank approximation is to the best one of its rank."""

from math import sqrt

import torch
from torch import Tensor

from lrzip.linalg.gram import rounding, squared_norm
from lrzip.linalg.scaling import unit_scaled

# Rows of a residual that are formed at a time.
_ROWS = 256


def squared_residual(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    """Return ‖A − L R‖_F² without forming L R.

    Args:
        matrix: A (m, n), any floating-point dtype; computed in the dtype of the factors, summed in float64.
        left: L (m, k).
        right: R (k, n).
    """
    blocks = zip(torch.split(matrix, _ROWS), torch.split(left, _ROWS), strict=True)
    return sum(squared_norm(a.to(right) - b @ right) for a, b in blocks)


def interlacing_bound(values: Tensor, rank: int) -> float:
    """Return a lower bound on the squared error of the best approximation of a rank: Σ_{i>rank} sᵢ².

    The singular values of QᵀA, for any orthonormal Q, are at most those of A (Cauchy). Rigorous, and sharp where Q
    captures much more than `rank` directions.

    Args:
        values: sᵢ of QᵀA, (size,) descending.
        rank: Below size.
    """
    return float(values[rank:].double().square().sum())


def ritz_bound(matrix: Tensor, basis: Tensor) -> float:
    """Return a lower bound on the squared error of the best approximation of a rank: ‖A‖_F² − Σ(θᵢ + ‖ρᵢ‖).

    θᵢ are the Ritz values of AᵀA in a subspace and ρᵢ the residuals of its Ritz vectors. An eigenvalue lies within
    ‖ρᵢ‖ of each θᵢ (Parlett 1998, theorem 4.5.1); that these are the leading ones holds for a subspace from a random
    start, which misses none but with probability 0. The bound is negative where the subspace has not converged.

    Args:
        matrix: A (m, n), m ≥ n.
        basis: V (n, rank), orthonormal, of which the rank is that of the approximation.
    """
    scaled = unit_scaled(matrix)
    image = scaled @ basis
    values, vectors = torch.linalg.eigh(image.mT @ image)
    residuals = (scaled.mT @ image) @ vectors - (basis @ vectors) * values
    missed = torch.linalg.vector_norm(residuals, dim=0, dtype=torch.float64).sum()
    captured = float(values.sum(dtype=torch.float64) + missed) + 2 * len(values) * rounding(values, values.dtype)
    unit = scaled.before * scaled.after
    return (scaled.squared_norm() - captured) / unit**2


def excess(squared_error: float, squared_optimum: float, floor: float) -> float:
    """Return the error over a lower bound of the optimum, less 1.

    Args:
        squared_error: Of the approximation.
        squared_optimum: A lower bound.
        floor: Squared error that is as good as none.
    """
    if squared_error <= max(squared_optimum, floor):
        return 0.0
    return sqrt(squared_error / max(squared_optimum, floor)) - 1

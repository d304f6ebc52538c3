"""A posteriori bounds on the distance of a low-rank approximation to the best one of its rank."""

from math import inf, sqrt

import torch
from torch import Tensor

from lrzip.linalg.blocks.gram import rounding, squared_norm
from lrzip.linalg.blocks.scaling import unit_scaled

# Rows of a residual that are formed at a time.
_ROWS = 256
# Ratio up to which separations of Ritz values from the rest of the spectrum share one bound.
_LIKE = 16.0


def squared_residual(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    """Return ‖A − L R‖_F² without forming L R.

    Args:
        matrix: A (m, n), any floating-point dtype; computed in the dtype of the factors, summed in float64.
        left: L (m, k).
        right: R (k, n).
    """
    if matrix.stride(-1) != 1:
        matrix, left, right = matrix.mT, right.mT, left.mT
    blocks = zip(torch.split(matrix, _ROWS), torch.split(left, _ROWS), strict=True)
    return sum(squared_norm(a.to(right) - b @ right) for a, b in blocks)


def interlacing_bound(values: Tensor, rank: int) -> float:
    """Return a lower bound on the squared error of the best approximation of a rank: Σ_{i>rank} sᵢ².

    The singular values of QᵀA, for any orthonormal Q, are at most those of A (Cauchy). The bound always holds, and is
    sharp if Q captures much more than `rank` directions.

    Args:
        values: sᵢ of QᵀA, (size,) descending.
        rank: Below size.
    """
    return float(values[rank:].double().square().sum())


def ritz_bound(matrix: Tensor, basis: Tensor) -> float:
    """Return a lower bound on the squared error of the best approximation of a rank: ‖A‖_F² − Σ(θᵢ + ‖ρᵢ‖).

    θᵢ are the Ritz values of AᵀA in a subspace and ρᵢ the residuals of its Ritz vectors. An eigenvalue lies within
    ‖ρᵢ‖ of each θᵢ (Parlett 1998, theorem 4.5.1). The bound assumes that these are the leading eigenvalues, as they are
    for a converged subspace from a random start. It is negative where the subspace has not converged.

    Args:
        matrix: A (m, n), m ≥ n.
        basis: V (n, rank), orthonormal; its size is the rank of the approximation.
    """
    scaled = unit_scaled(matrix)
    image = scaled @ basis
    values, vectors = torch.linalg.eigh(image.mT @ image)
    residuals = (scaled.mT @ image) @ vectors - (basis @ vectors) * values
    missed = torch.linalg.vector_norm(residuals, dim=0, dtype=torch.float64).sum()
    captured = float(values.sum(dtype=torch.float64) + missed) + 2 * len(values) * rounding(values, values.dtype)
    unit = scaled.before * scaled.after
    return (scaled.squared_norm() - captured) / unit**2


def ritz_gap(projected: Tensor, coupling: Tensor, rest: float, rank: int) -> float:
    """Return a bound on the sum of the leading eigenvalues of an operator minus that of its leading Ritz values.

    With an orthonormal Q and any completion, a symmetric G is [T Fᵀ; F C]. Above ‖C‖, G has as many eigenvalues larger
    than λ as the Schur complement T + Fᵀ(λ − C)⁻¹F (Haynsworth 1968), which is at most T + FᵀF / (θᵢ − ‖C‖) for λ at
    least the Ritz value θᵢ. Hence λᵢ ≤ λᵢ(T + FᵀF / (θᵢ − ‖C‖)): the bound is quadratic in the residuals, as the errors
    of Ritz values are, and holds for clustered eigenvalues too.

    Args:
        projected: T = QᵀGQ (size, size).
        coupling: FᵀF (size, size) for the residual F = GQ − QT.
        rest: Upper bound on ‖C‖₂, the norm of G on the complement of Q.
        rank: At most size.

    Returns:
        The bound; infinite if `rest` is not below θ_rank.
    """
    values = torch.linalg.eigvalsh(projected).flip(0)[:rank]
    separations = values.double() - rest
    if float(separations[-1]) <= 0:
        return inf
    total, start = 0.0, 0
    while start < rank:
        # Ritz values of similar separation share one matrix, with the smallest separation among them.
        end = start + int((separations[start:] * _LIKE >= separations[start]).sum())
        raised = torch.linalg.eigvalsh(projected + coupling / float(separations[end - 1])).flip(0)
        total += max(float((raised[start:end] - values[start:end]).sum(dtype=torch.float64)), 0.0)
        start = end
    return total


def excess(squared_error: float, squared_optimum: float, floor: float) -> float:
    """Return an upper bound on the error relative to the optimal error, minus 1.

    Args:
        squared_error: Squared error of the approximation.
        squared_optimum: Lower bound on the optimal squared error.
        floor: Squared error below which the excess counts as 0.
    """
    if squared_error <= max(squared_optimum, floor):
        return 0.0
    return sqrt(squared_error / max(squared_optimum, floor)) - 1

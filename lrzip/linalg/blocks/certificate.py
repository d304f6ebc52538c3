"""A posteriori bounds on the distance of a low-rank approximation to the best one of its rank."""

from math import inf, sqrt

import torch
from torch import Tensor

from lrzip.linalg.blocks.gram import rounding, squared_norm

# Rows of a residual that are formed at a time.
_ROWS = 256


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
        values: sᵢ of QᵀA, (size,) descending; each is lowered by the rounding error of its dtype.
        rank: At most size.
    """
    if len(values) == rank:
        return 0.0
    certain = values[rank:].double() - rounding(values, values.dtype)
    return float(certain.clamp(min=0).square().sum())


def ritz_gap(projected: Tensor, root: Tensor, rest: float, rank: int, *, size: int) -> float:
    """Return a bound on the sum of the leading eigenvalues of an operator minus that of its leading Ritz values.

    With an orthonormal Q and any completion, a symmetric G is [T Fᵀ; F C] ≤ [T Fᵀ; F ‖C‖I], and the eigenvalues of the
    latter are at least those of G (Weyl). They depend on T, FᵀF and ‖C‖ only, so the bound is the smallest one that
    these allow. It is quadratic in the residuals where ‖C‖ is below the leading Ritz values, as the errors of Ritz
    values are, and holds for clustered eigenvalues and for any ‖C‖.

    Args:
        projected: T = QᵀGQ (count, count).
        root: R (any, count) with RᵀR = FᵀF for the residual F = GQ − QT.
        rest: Upper bound on ‖C‖₂, the norm of G on the complement of Q.
        rank: At most count.
        size: Number of rows of G.

    Returns:
        The bound; infinite if `rest` is.
    """
    if rest == inf:
        return inf
    rows, count = root.shape
    outer = rest * torch.eye(rows, dtype=root.dtype, device=root.device)
    bordered = torch.cat([torch.cat([projected, root.mT], dim=1), torch.cat([root, outer], dim=1)])
    others = torch.full((min(max(size - rows - count, 0), rank),), rest, dtype=root.dtype, device=root.device)
    most = torch.cat([torch.linalg.eigvalsh(bordered), others]).topk(rank).values
    least = torch.linalg.eigvalsh(projected)[-rank:].flip(0)
    return max(float((most - least).sum(dtype=torch.float64)), 0.0)


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


def stored_excess(computed: float | None, squared_error: float, squared_optimum: float, floor: float) -> float | None:
    """Return an upper bound on the error of stored factors relative to the optimal error, minus 1.

    Args:
        computed: The bound before they were rounded to their dtype; None if there is none.
        squared_error: Squared error of the stored factors.
        squared_optimum: Lower bound on the optimal squared error.
        floor: Squared error below which the excess counts as 0.

    Returns:
        The bound; None if there was none before, or where rounding alone makes the error.
    """
    if computed is None or squared_optimum <= floor < squared_error:
        return None
    return max(computed, excess(squared_error, squared_optimum, floor))

"""Orthonormal bases of the span of given columns."""

from math import inf, sqrt

import torch
from torch import Tensor


def orthonormalize(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of some columns, by Householder QR.

    Args:
        columns: Shape (m, l), m ≥ l; may be linearly dependent. Their squares must not overflow.

    Returns:
        q (m, l), orthonormal to rounding for any columns. Where these span fewer than l dimensions, the remaining
        vectors are arbitrary.
    """
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def cholesky_orthonormalize(columns: Tensor) -> Tensor | None:
    """Return an orthonormal basis of the span of some columns, by CholeskyQR2; None if they are nearly dependent.

    Two rounds of Cholesky QR (Yamamoto et al. 2015), several times faster than Householder QR for tall matrices.

    Args:
        columns: Shape (m, l), m ≥ l.
    """
    once = _cholesky_qr(columns)
    return None if once is None else _cholesky_qr(once)


def ensure_orthogonal(known: Tensor, columns: Tensor, basis: Tensor | None) -> Tensor:
    """Return a basis if it is orthogonal to known vectors, otherwise one from a QR factorization that is.

    Args:
        known: Orthonormal, shape (m, k).
        columns: Shape (m, l), k + l ≤ m. Where they add fewer than l dimensions to `known`, the remaining vectors of
            the result are arbitrary.
        basis: Orthonormal basis (m, l) of the part of `columns` outside of `known`, up to rounding; None if there is
            none.

    Returns:
        (m, l), orthonormal, with no inner product with `known` above √m · eps.
    """
    limit = sqrt(columns.shape[0]) * torch.finfo(columns.dtype).eps
    if basis is None or float(torch.linalg.vector_norm(known.mT @ basis, ord=inf)) > limit:
        return orthonormalize(torch.cat([known, columns], dim=1))[:, known.shape[1] :]
    return basis


def _cholesky_qr(columns: Tensor) -> Tensor | None:
    """Return columns R⁻¹ for the Cholesky factor R of their Gram matrix, or None if that is nearly singular."""
    upper, info = torch.linalg.cholesky_ex(columns.mT @ columns, upper=True)
    diagonal = upper.diagonal()
    # The Gram matrix squares the condition number, which must therefore stay below eps^-½, with a margin.
    if int(info) or float(diagonal.min()) < 30 * torch.finfo(columns.dtype).eps ** 0.5 * float(diagonal.max()):
        return None
    result: Tensor = torch.linalg.solve_triangular(upper, columns, upper=True, left=False)
    return result

"""Singular values and truncated SVD of dense matrices, each by the cheapest method that meets the tolerance."""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.certificate import interlacing_bound
from lrzip.linalg.blocks.gram import gram, is_finite, rounding, safe_scale, tall
from lrzip.linalg.blocks.lapack import lapack_svd
from lrzip.linalg.blocks.precision import compute_dtype
from lrzip.linalg.gram_svd import find_subspace as find_subspace
from lrzip.linalg.gram_svd import project
from lrzip.linalg.sketched_svd import SKETCHES, sketched_svd
from lrzip.linalg.solver import Solver as Solver
from lrzip.linalg.solver import TruncatedSVD as TruncatedSVD

SUBSPACE_METHODS = ("auto", "gram")
"""Methods that compute the leading singular subspace first, by `find_subspace`."""
METHODS = (*SUBSPACE_METHODS, "exact", *SKETCHES)
# Largest relative error of the smallest singular value for a float32 Gram matrix to be used.
_RESOLUTION = 1e-3
# Matrices with this many times more rows than columns tend to be well conditioned, so float32 is tried first.
_TALL = 2


def singular_values(matrix: Tensor) -> Tensor:
    """Return all singular values of a matrix.

    Those of float64 matrices are computed by LAPACK. Lower precisions use the Gram matrix of the smaller side: in
    float32 if that gives the smallest singular value to 0.1 %, else in float64, where the errors of its eigenvalues are
    a few eps₆₄ σ₁².
    Every σ above 1e-7 σ₁ is then exact to float32 precision, and smaller ones are noise in a float32 matrix.

    Args:
        matrix: Real and finite, shape (m, n), any floating-point dtype and strides.

    Returns:
        (min(m, n),) float64, descending, on the device of `matrix`.

    Raises:
        ValueError: The matrix is not finite.
    """
    _check_finite(matrix)
    if matrix.dtype == torch.float64:
        values: Tensor = torch.linalg.svdvals(matrix)
        return values
    columns, scale = tall(matrix), safe_scale(matrix)
    if columns.shape[0] >= _TALL * columns.shape[1]:
        squares = torch.linalg.eigvalsh(gram(columns, dtype=torch.float32, scale=scale)).double()
        if float(squares[0]) * 2 * _RESOLUTION > rounding(squares, torch.float32):
            return _roots(squares) * scale
    squares = torch.linalg.eigvalsh(gram(columns, dtype=torch.float64, scale=scale))
    return _roots(squares) * scale


def truncated_svd(matrix: Tensor, rank: int, *, solver: Solver, generator: Generator) -> TruncatedSVD:
    """Return the leading `rank` singular triplets of a matrix.

    The excess of the error over the optimal error is checked against `solver.tolerance`: a sketch that misses it, or
    cannot be shown to meet it, is replaced by a decomposition from the Gram matrix.

    Args:
        matrix: Real and finite, shape (m, n), any floating-point dtype and strides. Computations with float16 and
            bfloat16 use float32.
        rank: Between 1 and min(m, n).
        solver: Method and its parameters.
        generator: Source of sketches, on the CPU.

    Returns:
        u, s, vh in the dtype of the computation, on the device of `matrix`, with the method and the checked excess.

    Raises:
        ValueError: The rank is out of range, or the matrix is not finite.
    """
    if not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"`rank` must be between 1 and {min(matrix.shape)}, got {rank}.")
    _check_finite(matrix)
    scale = safe_scale(matrix)
    if scale != 1:
        found = truncated_svd(matrix / scale, rank, solver=solver, generator=generator)
        return replace(found, s=found.s * scale, least=found.least * scale**2)
    if solver.method in SUBSPACE_METHODS:
        return project(matrix, find_subspace(matrix, rank, solver=solver, generator=generator), rank)
    return _exact(matrix, rank) if solver.method == "exact" else sketched_svd(matrix, rank, solver, generator)


def _exact(matrix: Tensor, rank: int) -> TruncatedSVD:
    u, s, vh = lapack_svd(matrix.to(compute_dtype(matrix.dtype)))
    return TruncatedSVD(u[:, :rank], s[:rank], vh[:rank], "lapack", 0.0, interlacing_bound(s, rank))


def _roots(squares: Tensor) -> Tensor:
    roots: Tensor = squares.clamp(min=0).sqrt().flip(0)
    return roots


def _check_finite(matrix: Tensor) -> None:
    if not is_finite(matrix):
        raise ValueError("The matrix contains NaN or Inf.")

"""Gram matrices AᵀA, whose eigenvectors are the right singular vectors of A and whose eigenvalues are the σᵢ²."""

from collections.abc import Iterable
from math import inf

import torch
from torch import Tensor

# Rows that are converted at a time, so that no converted copy of the matrix is made.
_ROWS = 1024
# Elements whose squares are summed in float32.
_PIECE = 512
# Only blocks on and below the diagonal are computed: with 8 × 8 blocks these are 56 % of the products.
_BLOCKS = 8
_MIN_BLOCK = 64
# The error of a computed Gram matrix of unit norm, and of the eigenvalues that LAPACK finds for it, in units of eps:
# rounding errors of blocked products do not accumulate as in the worst case.
_ROUNDING = 4.0


def tall(matrix: Tensor) -> Tensor:
    """Return a matrix, or its transpose if it has more columns than rows."""
    return matrix.mT if matrix.shape[0] < matrix.shape[1] else matrix


def gram(matrix: Tensor, *, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Return AᵀA / scale².

    Args:
        matrix: Shape (m, n), any floating-point dtype and strides; converted one block of rows at a time.
        dtype: Dtype of the products and of their sum.
        scale: Result of `safe_scale`, or 1. Squares of very small or very large elements would otherwise leave the
            range of float32.

    Returns:
        (n, n), exactly symmetric, on the device of `matrix`.
    """
    n = matrix.shape[1]
    square = torch.zeros(n, n, dtype=dtype, device=matrix.device)
    size = max(-(-n // _BLOCKS), _MIN_BLOCK)
    starts = range(0, n, size)
    for rows in _converted(matrix, dtype, scale):
        for start in starts:
            end = min(start + size, n)
            square[start:end, :end].addmm_(rows[:, start:end].mT, rows[:, :end])
    for start in starts:
        square[:start, start : start + size] = square[start : start + size, :start].mT
        diagonal = square[start : start + size, start : start + size]
        diagonal.copy_((diagonal + diagonal.mT) / 2)
    return square


def product(matrix: Tensor, columns: Tensor) -> Tensor:
    """Return A X for X (n, k), in the dtype of X; A is converted one block of rows at a time.

    The product is computed as XᵀAᵀ: BLAS is up to ten times faster with a few rows on the left than with a few columns
    on the right.
    """
    if matrix.dtype == columns.dtype:
        result: Tensor = (columns.mT @ matrix.mT).mT
        return result
    result = torch.empty(matrix.shape[0], columns.shape[1], dtype=columns.dtype, device=columns.device)
    for rows, out in zip(torch.split(matrix, _ROWS), torch.split(result, _ROWS), strict=True):
        torch.mm(rows.to(columns.dtype), columns, out=out)
    return result


def squared_norm(matrix: Tensor) -> float:
    """Return ‖A‖_F² to a relative precision of 1e-7: norms of pieces in float32, their squares in float64."""
    contiguous = matrix if matrix.stride(-1) == 1 else matrix.mT
    dtype = torch.float32 if safe_scale(matrix) == 1 and matrix.dtype != torch.float64 else torch.float64
    pieces = (
        torch.linalg.vector_norm(piece, dim=1, dtype=dtype).double().square().sum()
        for rows in torch.split(contiguous, _ROWS)
        for piece in torch.split(rows, _PIECE, dim=1)
    )
    return float(sum(pieces))


def largest_element(matrix: Tensor) -> float:
    """Return the largest absolute element: 0 for a zero matrix, NaN or infinite for a matrix that is not finite."""
    smallest, largest = torch.aminmax(matrix)
    return max(-float(smallest), float(largest))


def safe_scale(matrix: Tensor) -> float:
    """Return a power of two to divide a matrix by before it is squared; 1 if squares stay in range without it."""
    largest = largest_element(matrix)
    if largest == 0 or 1e-8 < largest < 1e8:
        return 1.0
    return float(2.0 ** torch.tensor(largest, dtype=torch.float64).log2().floor())


def rounding(values: Tensor, dtype: torch.dtype) -> float:
    """Return a bound on the error of the eigenvalues of a Gram matrix that is computed in a dtype.

    Args:
        values: All eigenvalues, or the largest one.
        dtype: Dtype of the Gram matrix.
    """
    return _ROUNDING * torch.finfo(dtype).eps * float(values.max())


def is_finite(weight: Tensor) -> bool:
    """Return whether all elements are finite, without allocating a mask."""
    return largest_element(weight) < inf


def _converted(matrix: Tensor, dtype: torch.dtype, scale: float) -> Iterable[Tensor]:
    if matrix.dtype == dtype and scale == 1:
        return [matrix]
    return (rows.to(dtype) / scale for rows in torch.split(matrix, _ROWS))

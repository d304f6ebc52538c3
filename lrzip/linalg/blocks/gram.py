"""Gram matrices AᵀA, whose eigenvectors are the right singular vectors of A and whose eigenvalues are the σᵢ²."""

from collections.abc import Iterable
from math import inf

import torch
from torch import Tensor

# Rows that are converted at a time, so that no second copy of the matrix is ever made.
_ROWS = 1024
# Elements whose squares are summed in float32.
_PIECE = 512
# Only blocks on and below the diagonal are computed: of 8 × 8 blocks that is 56 % of the products.
_BLOCKS = 8
_MIN_BLOCK = 64
# A computed Gram matrix of unit norm, and the eigenvalues that LAPACK finds of it, are off by a few eps: rounding
# errors of blocked products do not add up as the worst case would have it.
_ROUNDING = 4.0


def tall(matrix: Tensor) -> Tensor:
    """Return a matrix, or its transpose if it has more columns than rows."""
    return matrix.mT if matrix.shape[0] < matrix.shape[1] else matrix


def gram(matrix: Tensor, *, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Return AᵀA / scale².

    Args:
        matrix: (m, n), any floating-point dtype and strides; rows are converted a block at a time.
        dtype: In which products are computed and summed.
        scale: The largest absolute element, or 1. Without it the squares of very small or large values leave the
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
    """Return A X for X (n, k), in the dtype of X; rows of A are converted a block at a time.

    It is taken as XᵀAᵀ: a few rows from the left are up to ten times faster in BLAS than columns from the right.
    """
    if matrix.dtype == columns.dtype:
        result: Tensor = (columns.mT @ matrix.mT).mT
        return result
    result = torch.empty(matrix.shape[0], columns.shape[1], dtype=columns.dtype, device=columns.device)
    for rows, out in zip(torch.split(matrix, _ROWS), torch.split(result, _ROWS), strict=True):
        torch.mm(rows.to(columns.dtype), columns, out=out)
    return result


def squared_norm(matrix: Tensor) -> float:
    """Return ‖A‖_F²: pieces of rows in float32, at full speed and good to 1e-7, their squares in float64."""
    contiguous = matrix if matrix.stride(-1) == 1 else matrix.mT
    dtype = torch.float32 if safe_scale(matrix) == 1 and matrix.dtype != torch.float64 else torch.float64
    pieces = (
        torch.linalg.vector_norm(piece, dim=1, dtype=dtype).double().square().sum()
        for rows in torch.split(contiguous, _ROWS)
        for piece in torch.split(rows, _PIECE, dim=1)
    )
    return float(sum(pieces))


def largest_element(matrix: Tensor) -> float:
    """Return the largest absolute element; 0 for a zero matrix, NaN or infinite for one that is not finite."""
    smallest, largest = torch.aminmax(matrix)
    return max(-float(smallest), float(largest))


def safe_scale(matrix: Tensor) -> float:
    """Return a power of two to divide a matrix by before it is squared; 1 where squares stay in range anyway."""
    largest = largest_element(matrix)
    if largest == 0 or 1e-8 < largest < 1e8:
        return 1.0
    return float(2.0 ** torch.tensor(largest, dtype=torch.float64).log2().floor())


def rounding(values: Tensor, dtype: torch.dtype) -> float:
    """Return by how much eigenvalues of a Gram matrix computed in `dtype` may be off, given all or the largest."""
    return _ROUNDING * torch.finfo(dtype).eps * float(values.max())


def _converted(matrix: Tensor, dtype: torch.dtype, scale: float) -> Iterable[Tensor]:
    if matrix.dtype == dtype and scale == 1:
        return [matrix]
    return (rows.to(dtype) / scale for rows in torch.split(matrix, _ROWS))


def is_finite(weight: Tensor) -> bool:
    """Tell whether all elements are finite, without a mask as large as the weight."""
    return largest_element(weight) < inf

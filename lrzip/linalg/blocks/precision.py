"""The precision in which matrices are computed, and the errors that it makes unavoidable."""

import torch
from torch import Tensor

from lrzip.linalg.blocks.gram import safe_scale, tall

# The error of stored factors, relative to the norm of the matrix, in units of eps.
_ATTAINABLE = 20.0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which matrices of a dtype are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def attainable(dtype: torch.dtype, energy: float) -> float:
    """Return the squared error below which factors of a precision cannot approximate a matrix.

    Args:
        dtype: Dtype of the matrix; the precision is that of `compute_dtype`.
        energy: ‖A‖_F² of the matrix.
    """
    return max((_ATTAINABLE * torch.finfo(compute_dtype(dtype)).eps) ** 2 * energy, torch.finfo(torch.float64).tiny)


def working(matrix: Tensor) -> tuple[Tensor, float]:
    """Return a matrix or its transpose, tall, in the dtype to compute in and divided by a scale; and that scale.

    The scale is a power of two that keeps squares in range, see `safe_scale`.
    """
    columns, scale = tall(matrix).to(compute_dtype(matrix.dtype)), safe_scale(matrix)
    return columns if scale == 1 else columns / scale, scale

"""The SVD of a matrix projected onto the span of a basis."""

import torch
from torch import Tensor

from lrzip.linalg.blocks.scaling import unit_scaled


def direct_svd(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the exact SVD of QQᵀA.

    Halko, Martinsson & Tropp (2011), algorithm 5.1: the SVD of B = QᵀA, with left vectors lifted by Q. Apart from
    rounding it adds no error to that of the basis: ‖A − u s vh‖ = ‖A − QQᵀA‖ in every unitarily invariant norm.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        basis: q (m, l) with orthonormal columns, l ≤ min(m, n), in the dtype of `matrix`.

    Returns:
        u (m, l), s (l,) descending, vh (l, n), in the dtype and on the device of `matrix`. u has orthonormal columns
        and vh orthonormal rows; sᵢ ≤ σᵢ(A).
    """
    scaled = unit_scaled(matrix)
    # Bᵀ instead of B: LAPACK takes half the time for a tall matrix as for a wide one.
    v, s, uh = torch.linalg.svd(scaled.mT @ basis, full_matrices=False)
    return basis @ uh.mT, scaled.restore(s), v.mT

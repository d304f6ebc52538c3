"""The SVD of a matrix within the span of a basis, and the compression scheme that is built on it."""

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.rangefinder import power_iteration
from lrzip.linalg.blocks.scaling import unit_scaled


def direct_svd(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the exact SVD of QQᵀA.

    Halko, Martinsson & Tropp (2011), algorithm 5.1: the SVD of B = QᵀA, with left vectors lifted by Q. It adds no error
    to that of the basis but rounding: ‖A − u s vh‖ = ‖A − QQᵀA‖ in every norm.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        basis: q (m, l) with orthonormal columns, l ≤ min(m, n), in the dtype of `matrix`.

    Returns:
        u (m, l), s (l,) descending, vh (l, n), in the dtype and on the device of `matrix`. u and vh have orthonormal
        columns and rows; sᵢ ≤ σᵢ(A).
    """
    scaled = unit_scaled(matrix)
    # Bᵀ instead of B: LAPACK takes half the time for a tall matrix as for a wide one.
    v, s, uh = torch.linalg.svd(scaled.mT @ basis, full_matrices=False)
    return basis @ uh.mT, scaled.restore(s), v.mT


def power_iteration_svd(
    matrix: Tensor, rank: int, *, power_iterations: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an approximation of the leading `rank` singular triplets of a matrix, by a doubled sketch and powers of A.

    Algorithm 11 of Kant (2025), Compression of Neural Networks, section 8: a Gaussian sketch with 2 · `rank` columns,
    the power scheme of Halko, Martinsson & Tropp (2011), algorithm 4.3, then their algorithm 5.1, cut to `rank`.
    As QR follows the last power only, many iterations gain nothing below eps^(1 / (2q + 1)) σ₁.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        rank: Between 1 and min(m, n); the sketch has min(2 · rank, m, n) columns.
        power_iterations: q ≥ 0.
        generator: Source of the sketch, on the CPU.

    Returns:
        u (m, rank), s (rank,) descending, vh (rank, n), in the dtype and on the device of `matrix`. u and vh have
        orthonormal columns and rows.
    """
    size = min(2 * rank, *matrix.shape)
    basis = power_iteration(matrix, size, power_iterations=power_iterations, generator=generator)
    u, s, vh = direct_svd(matrix, basis)
    return u[:, :rank], s[:rank], vh[:rank]

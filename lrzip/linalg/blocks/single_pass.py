"""Truncated SVD from a single pass over the rows of a matrix."""

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.orthogonal import orthonormalize
from lrzip.linalg.blocks.scaling import unit_scaled
from lrzip.linalg.blocks.sketches import gaussian

# Rows that are read at a time.
_BLOCK_ROWS = 1024


def single_pass_svd(
    matrix: Tensor, rank: int, *, oversample: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an approximation of the leading `rank` singular triplets from one pass over the rows of a matrix.

    Tropp, Yurtsever, Udell & Cevher (2017), 'Practical sketching algorithms for low-rank matrix approximation', SIAM J.
    Matrix Anal. Appl. 38(4), algorithm 7: `single_pass_qb` with k = 2 · rank + `oversample` and l = 2k + 1, truncated
    to the rank by the SVD of x. With `oversample` 1 these are the sizes that they recommend, k = 2r + 1 and l = 4r + 3.

    The root-mean-square error before truncation is at most about 2 (Σ_{j>rank} σⱼ²)^½; truncation adds at most the
    same again plus the optimal error. Observed errors are far smaller.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64; float32 elements below 1e36 / √(mn).
        rank: Between 1 and min(m, n).
        oversample: Columns of the range sketch beyond twice the rank, not negative. Sketches are at most as large as A.
        generator: Source of both test matrices, on the CPU.

    Returns:
        u (m, rank), s (rank,) descending, vh (rank, n), in the dtype and on the device of `matrix`. u has orthonormal
        columns and vh orthonormal rows.
    """
    m, n = matrix.shape
    size = min(2 * rank + oversample, m, n)
    q, x = single_pass_qb(matrix, size, co_size=min(2 * size + 1, m), generator=generator)
    scaled = unit_scaled(x)
    u, s, vh = torch.linalg.svd(x * scaled.before * scaled.after, full_matrices=False)
    return q @ u[:, :rank], scaled.restore(s[:rank]), vh[:rank]


def single_pass_qb(matrix: Tensor, size: int, *, co_size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return a factorization A ≈ q x with orthonormal q from one pass over the rows of a matrix.

    Tropp, Yurtsever, Udell & Cevher (2017), algorithm 4: the pass accumulates a range sketch Y = AΩ and a co-range
    sketch W = ΨA. Then q is the Q of Y, and x = (Ψq)⁺W approximates qᵀA.

    E‖A − q x‖_F² ≤ (1 + f(k, l)) · (1 + f(ρ, k)) · Σ_{j>ρ} σⱼ² for every ρ < k − 1, where f(s, t) = s / (t − s − 1),
    k = `size` and l = `co_size` (theorem 4.3). Ψ has orthonormal rows instead of Gaussian ones, which is more stable
    and divides f(k, l) by (m − k) / (m − l): with l = m, x is exactly qᵀA.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64; float32 elements below 1e36 / √(mn).
        size: Columns of the range sketch, at most min(m, n).
        co_size: Rows of the co-range sketch, between `size` and m.
        generator: Source of both test matrices, on the CPU.

    Returns:
        q (m, size) with orthonormal columns, x (size, n), in the dtype and on the device of `matrix`.
    """
    m, n = matrix.shape
    omega = gaussian(n, size, generator=generator, dtype=matrix.dtype, device=matrix.device)
    psi = orthonormalize(gaussian(m, co_size, generator=generator, dtype=matrix.dtype, device=matrix.device)).mT
    y, w = _sketches(matrix, omega, psi)
    # The magnitude of the matrix is known only after the pass, from its sketches.
    scaled = unit_scaled(y)
    q = orthonormalize(y * scaled.before * scaled.after)
    t, r = torch.linalg.qr(psi @ q)
    return q, torch.linalg.solve_triangular(r, t.mT @ w, upper=True)


def _sketches(matrix: Tensor, omega: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """Return AΩ and ΨA, reading every row of the matrix once."""
    parts: list[Tensor] = []
    w = matrix.new_zeros(psi.shape[0], matrix.shape[1])
    for rows, weights in zip(torch.split(matrix, _BLOCK_ROWS), torch.split(psi, _BLOCK_ROWS, dim=1), strict=True):
        parts.append(rows @ omega)
        w.addmm_(weights, rows)
    return torch.cat(parts), w

"""Orthonormal bases that capture most of the range of a matrix (Halko, Martinsson & Tropp 2011, section 4).

Each computes a sketch of the range, Y = AΩ, and returns the Q of Y = QR. Its error is ‖A − QQᵀA‖. The basis is
orthonormal to rounding for every matrix: where the sketch has fewer dimensions than columns, the rest is arbitrary.
"""

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.orthogonal import orthonormalize
from lrzip.linalg.blocks.scaling import UnitScaled, unit_scaled
from lrzip.linalg.blocks.sketches import cosine_transform, gaussian

# Rows that are transformed at a time, so that no transformed copy of the matrix is made.
_TRANSFORM_ROWS = 1024


def power_iteration(matrix: Tensor, size: int, *, power_iterations: int, generator: Generator) -> Tensor:
    """Return an orthonormal basis of the approximate range of a matrix, by a power scheme that orthonormalizes once.

    Halko, Martinsson & Tropp (2011), algorithm 4.3: the range of (A Aᵀ)^q A Ω, whose singular values are σᵢ^(2q + 1).
    In exact arithmetic it is the basis of `subspace_iteration`, with q fewer pairs of QR factorizations. In floating
    point, directions with σᵢ below eps^(1 / (2q + 1)) σ₁ are lost in the rounding of the leading ones: for float32
    those below 4 % of σ₁ with q = 2, and below 17 % with q = 4.

    Without iterations it is a single Gaussian sketch (algorithm 4.1). With size = k + p its mean error is
    E‖A − QQᵀA‖_F ≤ √(1 + k/(p − 1)) · (Σ_{j>k} σⱼ²)^½ for every k ≥ 2 and p ≥ 2 (theorem 10.5): good for fast decay of
    the spectrum, while slow decay needs iterations.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        size: Number of basis vectors, rank plus oversampling, at most min(m, n).
        power_iterations: q ≥ 0, applications of A Aᵀ.
        generator: Source of the sketch, on the CPU.

    Returns:
        q (m, size) with orthonormal columns, in the dtype and on the device of `matrix`.
    """
    scaled = unit_scaled(matrix)
    columns = _sketch(scaled, size, generator)
    for _ in range(power_iterations):
        # A common power of two for all columns is exact and keeps high powers in range.
        columns = _to_unit(scaled.mT @ columns)
        columns = _to_unit(scaled @ columns)
    return orthonormalize(columns)


def subspace_iteration(matrix: Tensor, size: int, *, power_iterations: int, generator: Generator) -> Tensor:
    """Return an orthonormal basis of the approximate range of a matrix, by a stable power scheme.

    Halko, Martinsson & Tropp (2011), algorithm 4.4: a Gaussian sketch, then `power_iterations` applications of A Aᵀ,
    each with a QR factorization after A and after Aᵀ. Without these, all directions with σᵢ / σ₁ below
    eps^(1 / (2q + 1)) would be lost.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        size: Number of basis vectors, rank plus oversampling, at most min(m, n).
        power_iterations: q ≥ 0. Two are enough for decaying spectra; slow decay needs more.
        generator: Source of the sketch, on the CPU, so that every device uses the same one.

    Returns:
        q (m, size) with orthonormal columns, in the dtype and on the device of `matrix`.
    """
    scaled = unit_scaled(matrix)
    basis = orthonormalize(_sketch(scaled, size, generator))
    for _ in range(power_iterations):
        basis = orthonormalize(scaled.mT @ basis)
        basis = orthonormalize(scaled @ basis)
    return basis


def srft_range(matrix: Tensor, size: int, *, generator: Generator) -> Tensor:
    """Return an orthonormal basis of the approximate range of a matrix, by a structured sketch in O(mn log n).

    Halko, Martinsson & Tropp (2011), algorithm 4.5: random signs, a fast orthonormal transform that spreads every row
    over all its elements, and a random sample of `size` of these elements without replacement. The transform is the
    real cosine transform instead of the Fourier transform (as in Blendenpik; Avron, Maymounkov & Toledo 2010).

    For the Fourier transform, size ≥ 4 [√k + √(8 log(kn))]² log k gives ‖A − QQᵀA‖₂ ≤ √(1 + 7n / size) σ_{k+1} except
    with a probability of O(1/k) (theorem 11.2). The elements of the cosine transform are up to √2 larger, for which the
    same argument requires twice that size. In practice it is as accurate as a Gaussian sketch of the same size
    (section 4.6).

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        size: Number of basis vectors, rank plus oversampling, at most min(m, n).
        generator: Source of the signs and the sample, on the CPU.

    Returns:
        q (m, size) with orthonormal columns, in the dtype and on the device of `matrix`.
    """
    n = matrix.shape[1]
    scaled = unit_scaled(matrix)
    signs = (2 * torch.randint(2, (n,), generator=generator) - 1).to(matrix) * scaled.before
    kept = torch.randperm(n, generator=generator)[:size].to(matrix.device)
    blocks = torch.split(matrix, _TRANSFORM_ROWS)
    return orthonormalize(torch.cat([cosine_transform(block * signs * scaled.after)[:, kept] for block in blocks]))


def _sketch(scaled: UnitScaled, size: int, generator: Generator) -> Tensor:
    matrix = scaled.matrix
    return scaled @ gaussian(matrix.shape[1], size, generator=generator, dtype=matrix.dtype, device=matrix.device)


def _to_unit(columns: Tensor) -> Tensor:
    scaled = unit_scaled(columns)
    return columns * scaled.before * scaled.after

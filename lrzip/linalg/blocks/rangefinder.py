"""Orthonormal bases that capture most of the range of a matrix (Halko, Martinsson & Tropp 2011, section 4).

Each sketches the range, Y = AΩ, and returns the Q of Y = QR. What they lose is ‖A − QQᵀA‖. A basis is orthonormal to
rounding for every matrix: where the sketch has fewer dimensions than columns, the rest is arbitrary.
"""

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.scaling import UnitScaled, unit_scaled
from lrzip.linalg.blocks.sketches import cosine_transform, gaussian

# Rows transformed at a time, so that no transformed copy of the matrix is ever made.
_TRANSFORM_ROWS = 1024


def gaussian_range(matrix: Tensor, size: int, *, generator: Generator) -> Tensor:
    """Return an orthonormal basis of the approximate range of a matrix, by one sketch.

    Halko, Martinsson & Tropp (2011), algorithm 4.1. With size = k + p the mean error is
    E‖A − QQᵀA‖_F ≤ √(1 + k/(p − 1)) · (Σ_{j>k} σⱼ²)^½ for every k ≥ 2 and p ≥ 2 (theorem 10.5): good where the spectrum
    decays fast, while slow decay wants `subspace_iteration`.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        size: Number of basis vectors, at most min(m, n): rank plus oversampling.
        generator: Source of the sketch, on the CPU.

    Returns:
        q (m, size) with orthonormal columns, in the dtype and on the device of `matrix`.
    """
    return orthonormalize(_sketch(unit_scaled(matrix), size, generator))


def power_iteration(matrix: Tensor, size: int, *, power_iterations: int, generator: Generator) -> Tensor:
    """Return an orthonormal basis of the approximate range of a matrix, by a power scheme that orthonormalizes once.

    Halko, Martinsson & Tropp (2011), algorithm 4.3: the range of (A Aᵀ)^q A Ω, whose singular values are σᵢ^(2q + 1).
    In exact arithmetic it is the basis of `subspace_iteration`, by q fewer pairs of QR factorizations. With rounding,
    directions with σᵢ below eps^(1 / (2q + 1)) σ₁ drown in the rounding of the leading ones and are lost: for float32
    and q = 2 these are the ones below 4 % of σ₁, for q = 4 below 17 %.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        size: Number of basis vectors, at most min(m, n): rank plus oversampling.
        power_iterations: q ≥ 0.
        generator: Source of the sketch, on the CPU.

    Returns:
        q (m, size) with orthonormal columns, in the dtype and on the device of `matrix`.
    """
    scaled = unit_scaled(matrix)
    columns = _sketch(scaled, size, generator)
    for _ in range(power_iterations):
        # A power of two for all columns rounds nothing, and keeps high powers in range.
        columns = _to_unit(scaled.mT @ columns)
        columns = _to_unit(scaled @ columns)
    return orthonormalize(columns)


def subspace_iteration(matrix: Tensor, size: int, *, power_iterations: int, generator: Generator) -> Tensor:
    """Return an orthonormal basis of the approximate range of a matrix, by a stable power scheme.

    Halko, Martinsson & Tropp (2011), algorithm 4.4: a Gaussian sketch, then `power_iterations` applications of A Aᵀ.
    Every application is followed by a QR factorization, without which the basis loses all directions with
    σᵢ / σ₁ below eps^(1 / (2q + 1)).

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        size: Number of basis vectors, at most min(m, n): rank plus oversampling.
        power_iterations: q ≥ 0. Two are enough for spectra that decay; slow decay wants more.
        generator: Source of the sketch, on the CPU, so that every device draws the same one.

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
    over all its elements, and `size` of these elements at random, without replacement. The transform is the real
    cosine transform instead of the Fourier transform (as in Blendenpik; Avron, Maymounkov & Toledo 2010).

    For the Fourier transform, size ≥ 4 [√k + √(8 log(kn))]² log k gives ‖A − QQᵀA‖₂ ≤ √(1 + 7n / size) σ_{k+1} except
    with a probability of O(1/k) (theorem 11.2). The elements of the cosine transform are up to √2 larger, and the same
    argument asks for twice that size. In practice it does what a Gaussian sketch of the same size does (section 4.6).

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        size: Number of basis vectors, at most min(m, n): rank plus oversampling.
        generator: Source of signs and sample, on the CPU.

    Returns:
        q (m, size) with orthonormal columns, in the dtype and on the device of `matrix`.
    """
    n = matrix.shape[1]
    scaled = unit_scaled(matrix)
    signs = (2 * torch.randint(2, (n,), generator=generator) - 1).to(matrix) * scaled.before
    kept = torch.randperm(n, generator=generator)[:size].to(matrix.device)
    blocks = torch.split(matrix, _TRANSFORM_ROWS)
    return orthonormalize(torch.cat([cosine_transform(block * signs * scaled.after)[:, kept] for block in blocks]))


def orthonormalize(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of some columns, by Householder QR.

    Args:
        columns: Shape (m, l), m ≥ l. They may be dependent; their magnitude must leave room for squares.

    Returns:
        q (m, l), orthonormal to rounding whatever the columns are.
    """
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def _sketch(scaled: UnitScaled, size: int, generator: Generator) -> Tensor:
    matrix = scaled.matrix
    return scaled @ gaussian(matrix.shape[1], size, generator=generator, dtype=matrix.dtype, device=matrix.device)


def _to_unit(columns: Tensor) -> Tensor:
    scaled = unit_scaled(columns)
    return columns * scaled.before * scaled.after

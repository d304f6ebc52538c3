"""Eigenvalues of symmetric matrices within the span of a basis (Halko, Martinsson & Tropp 2011, sections 5.3 to 5.5).

All return values ascending with their vectors, as `torch.linalg.eigh` does.
"""

from math import sqrt

import torch
from torch import Tensor

from lrzip.linalg.blocks.scaling import unit_scaled


def eigh_within(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exact eigendecomposition of QQᵀAQQᵀ, by its l possibly nonzero eigenvalues.

    Halko, Martinsson & Tropp (2011), algorithm 5.3. ‖A − vectors · values · vectorsᵀ‖ ≤ 2 ‖A − QQᵀA‖ (section 5.3).

    Args:
        matrix: Real, finite and symmetric, shape (n, n), float32 or float64.
        basis: q (n, l) with orthonormal columns, in the dtype of `matrix`.

    Returns:
        values (l,) ascending, vectors (n, l) with orthonormal columns, in the dtype and on the device of `matrix`.
    """
    scaled = unit_scaled(matrix)
    core = basis.mT @ (scaled @ basis)
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    return scaled.restore(values), basis @ vectors


def nystrom(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigendecomposition of the Nyström approximation (AQ)(QᵀAQ)⁺(AQ)ᵀ of a positive semidefinite matrix.

    Halko, Martinsson & Tropp (2011), algorithm 5.5, made stable for singular matrices: what is factorized is A + νI
    with ν = √n eps ‖AQ‖_F, and ν is subtracted from the result (Tropp, Yurtsever, Udell & Cevher 2017, 'Fixed-rank
    approximation of a positive-semidefinite matrix from streaming data', algorithm 3; Li et al. 2017). Its error is at
    most that of `eigh_within`, at the same cost, and at most ‖A − QQᵀA‖₂, up to a small multiple of ν.

    Args:
        matrix: Real, finite and positive semidefinite up to rounding, shape (n, n), float32 or float64.
        basis: q (n, l) with orthonormal columns, in the dtype of `matrix`.

    Returns:
        values (l,) ascending, not negative, vectors (n, l) with orthonormal columns, in the dtype and on the device of
        `matrix`.

    Raises:
        torch.linalg.LinAlgError: The matrix has eigenvalues well below zero.
    """
    scaled = unit_scaled(matrix)
    image = scaled @ basis
    # The scaled matrix has a norm of at least ½, so 1 covers the rounding of an image that vanishes.
    rounding = sqrt(len(matrix)) * torch.finfo(matrix.dtype).eps
    shift = rounding * max(float(torch.linalg.matrix_norm(image)), 1.0)
    image = image + shift * basis
    core = basis.mT @ image
    lower = torch.linalg.cholesky((core + core.mT) / 2)
    half = torch.linalg.solve_triangular(lower, image.mT, upper=False).mT  # half @ half.mT is the approximation
    vectors, roots, _ = torch.linalg.svd(half, full_matrices=False)
    # A little more than what was added, so that its rounding does not pass for an eigenvalue.
    values = (roots.square() - shift * (1 + 4 * rounding)).clamp(min=0)
    return scaled.restore(values).flip(0), vectors.flip(1)


def single_pass_eigh(sketch: Tensor, test_matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return an eigendecomposition of a symmetric matrix from its sketch alone.

    Halko, Martinsson & Tropp (2011), algorithm 5.6: Q holds the `rank` leading left singular vectors of Y = AΩ, and the
    symmetric B that solves B (QᵀΩ) ≈ QᵀY in least squares stands for QᵀAQ. A itself is not needed again.

    ‖B − QᵀAQ‖_F ≤ ‖QᵀA(I − QQᵀ)Ω‖_F / σ_min(QᵀΩ), so a Gaussian Ω wants some columns beyond the rank.

    Args:
        sketch: Y = AΩ, shape (n, l), finite, float32 or float64.
        test_matrix: Ω, shape (n, l), in the dtype of `sketch`.
        rank: Between 1 and l.

    Returns:
        values (rank,) ascending, vectors (n, rank) with orthonormal columns, in the dtype and on the device of
        `sketch`. Exact up to rounding for A of that rank.
    """
    scaled = unit_scaled(sketch)
    columns = sketch * scaled.before * scaled.after
    basis = torch.linalg.svd(columns, full_matrices=False).U[:, :rank]
    core = _symmetric_least_squares(basis.mT @ test_matrix, basis.mT @ columns)
    values, vectors = torch.linalg.eigh(core)
    return scaled.restore(values), basis @ vectors


def _symmetric_least_squares(factor: Tensor, product: Tensor) -> Tensor:
    """Return the symmetric B that minimizes ‖B factor − product‖_F.

    Its normal equations B F Fᵀ + F Fᵀ B = P Fᵀ + F Pᵀ are diagonal in the left singular vectors of F.
    """
    u, s, vh = torch.linalg.svd(factor, full_matrices=False)
    denominators = s[:, None].square() + s.square()
    half = (u.mT @ product @ vh.mT) * s / torch.where(denominators > 0, denominators, 1.0)
    solution: Tensor = u @ (half + half.mT) @ u.mT
    return solution

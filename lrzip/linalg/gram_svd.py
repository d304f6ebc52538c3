"""Truncated SVD from the leading singular subspace of the smaller side of a matrix."""

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.gram import product, rounding, tall
from lrzip.linalg.blocks.lapack import lapack_svd
from lrzip.linalg.blocks.orthogonal import orthonormalize
from lrzip.linalg.blocks.precision import working
from lrzip.linalg.blocks.sketched import sketched_subspace
from lrzip.linalg.blocks.sketches import gaussian
from lrzip.linalg.blocks.subspace import Subspace, leading_subspace
from lrzip.linalg.solver import Solver, TruncatedSVD

# Largest deviation of u from orthonormality; above it, a QR factorization restores orthonormal columns.
_ORTHOGONALITY = 1e-4
# A first small sketch estimates the decay of the spectrum: `auto` tries a sketch of full size if this many columns
# leave less than this share of the energy, for matrices whose smaller side is large in absolute terms and in relation
# to the rank.
_PROBE_COLUMNS = 32
_PROBE_LEAVES = 0.05
_PROBE_FROM = 512
_PROBE_SHARE = 8


def find_subspace(matrix: Tensor, rank: int, *, solver: Solver, generator: Generator) -> Subspace:
    """Return the leading `rank` singular vectors of the smaller side of a matrix, by method `auto` or `gram`.

    `gram` computes eigenvectors of the Gram matrix: all of them, or the leading ones by block Lanczos, whichever costs
    less; in float32 if that provably meets the tolerance, else in float64, and by LAPACK if even float64 does not meet
    it. `auto` tries a sketch first if a few directions hold nearly all energy.

    Args:
        matrix: Finite, shape (m, n).
        rank: Between 1 and min(m, n).
        solver: Its method is `auto` or `gram`.
        generator: Source of sketches, on the CPU.
    """
    left = _left_by_probe(matrix, rank, generator) if solver.method == "auto" else 1.0
    if left <= _PROBE_LEAVES:
        found = sketched_subspace(
            matrix, rank, tolerance=solver.tolerance, oversample=solver.oversample, generator=generator
        )
        if found is not None and found.excess(rank) <= solver.tolerance:
            return found
    # σ₁² is at least the mean of the squares that the probe captured; float32 is of no use if its rounding error, which
    # is proportional to σ₁², exceeds the tolerance on the energy that is left.
    rounded = rank * rounding(torch.tensor((1 - left) / min(rank, _PROBE_COLUMNS)), torch.float32)
    coarse = rank < _PROBE_COLUMNS or rounded <= solver.tolerance * left
    return leading_subspace(matrix, rank, tolerance=solver.tolerance, generator=generator, coarse=coarse)


def project(matrix: Tensor, subspace: Subspace, rank: int) -> TruncatedSVD:
    """Return the singular triplets of a matrix within the leading `rank` vectors of a subspace of its smaller side.

    The images of singular vectors are orthogonal, and their norms are the singular values. Rounding errors of the
    vectors are amplified to eps (σ₁ / σᵢ)²; if that is too much, a QR factorization and a small SVD correct them
    (Halko, Martinsson & Tropp 2011, algorithm 5.1).

    Args:
        matrix: Shape (m, n), any floating-point dtype.
        subspace: Subspace of this matrix with at least `rank` vectors.
        rank: At least 1.
    """
    columns = tall(matrix)
    basis = subspace.vectors[:, :rank]
    image = product(columns, basis)
    s = torch.linalg.vector_norm(image, dim=0)
    smallest, eps = float(s.min()), torch.finfo(s.dtype).eps
    if smallest == 0 or eps * (float(s.max()) / smallest) ** 2 > _ORTHOGONALITY:
        q, r = torch.linalg.qr(image)
        left, s, right = lapack_svd(r)
        u, v = q @ left, basis @ right.mT
    else:
        s, order = s.sort(descending=True)
        u, v = image[:, order].div_(s), basis[:, order]
    u, vh = (v, u.mT) if columns.shape != matrix.shape else (u, v.mT)
    return TruncatedSVD(u, s, vh, subspace.method, subspace.excess(rank), subspace.least(rank))


def _left_by_probe(matrix: Tensor, rank: int, generator: Generator) -> float:
    """Return the share of the energy that a small sketch leaves; 1 if a sketch of full size could not pay off."""
    side = min(matrix.shape)
    if side < _PROBE_FROM or rank > side // _PROBE_SHARE:
        return 1.0
    columns, _ = working(matrix)
    start = gaussian(side, min(rank, _PROBE_COLUMNS), generator=generator, dtype=columns.dtype, device=matrix.device)
    basis = orthonormalize(product(columns, start))
    energy, captured = (float(torch.linalg.vector_norm(part)) ** 2 for part in (columns, product(columns.mT, basis)))
    return max(energy - captured, 0.0) / energy if energy else 0.0

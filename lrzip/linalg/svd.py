"""Singular values and truncated SVD of dense matrices, each by the cheapest method that is safe."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lrzip.linalg.rangefinder import subspace_iteration

# Rows that are squared at a time in float64, so that no float64 copy of the matrix is ever made.
_GRAM_ROWS = 1024
# A Gram matrix may cost this share of the best possible squared error. It is a bound; what is seen is 100 times less.
_GRAM_LOSS = 2e-3
# Cost of the operations of an eigensolver, a QR factorization and a small SVD against those of a matrix product: eigh
# of 2048² takes 560 ms, QR of 2048² 282 ms and svd of 768² 72 ms, where 2048² times itself takes 90 ms (float32).
_EIGH_COST = 12.0
_QR_COST = 3.0
_SVD_COST = 32.0
# A sketch ends 1 to 3 % above the optimum on slow decays, the exact answer does not, so it has to be this much cheaper.
_SKETCH_ADVANTAGE = 3


@dataclass(frozen=True)
class Solver:
    """How truncated SVDs are computed.

    Attributes:
        method: `exact`, `randomized`, or `auto`, the one that costs less.
        oversample: Sketch vectors beyond the rank (Halko, Martinsson & Tropp 2011, section 4.2: 5 to 10).
        power_iterations: Applications of A Aᵀ to the sketch.
    """

    method: str = "auto"
    oversample: int = 10
    power_iterations: int = 2


def singular_values(matrix: Tensor) -> Tensor:
    """Return all singular values of a matrix.

    float64 goes to LAPACK. Lower precisions go through the Gram matrix of the smaller side in float64, whose
    eigenvalues are off by at most about eps₆₄ σ₁²: every σ above 1e-7 σ₁ is right to float32 precision, and what is
    below that is noise in a float32 matrix.

    Args:
        matrix: Real and finite, shape (m, n), any strides.

    Returns:
        (min(m, n),) float64, descending, on the device of `matrix`.
    """
    if matrix.dtype == torch.float64:
        values: Tensor = torch.linalg.svdvals(matrix)
        return values
    squares: Tensor = torch.linalg.eigvalsh(_gram(_tall(matrix), torch.float64))
    return squares.clamp(min=0).sqrt().flip(0)


def truncated_svd(
    matrix: Tensor, rank: int, *, solver: Solver, generator: Generator
) -> tuple[Tensor, Tensor, Tensor, str]:
    """Return the leading `rank` singular triplets of a matrix, and the method that gave them.

    `exact` takes the row space from the eigenvectors of a Gram matrix: in float32 where that provably costs nothing
    against the discarded energy, else in float64, and from LAPACK where the matrix is (nearly) of that rank already.
    `randomized` takes it from a sketch (algorithm 4.4 of Halko, Martinsson & Tropp 2011). Both end in their algorithm
    5.1: the SVD of the matrix within that space.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64, any strides.
        rank: Between 1 and min(m, n).
        solver: Method and its parameters.
        generator: Source of the sketch.

    Returns:
        u (m, rank), s (rank,) descending, vh (rank, n) in the dtype of `matrix`, and `gram`, `lapack` or `randomized`.
        u and vh have orthonormal columns and rows; ‖A − u s vh‖ is within 0.1 % of the optimum unless randomized.
    """
    transposed = matrix.shape[0] < matrix.shape[1]
    tall = _tall(matrix)
    method = _cheaper(tall.shape, rank, solver) if solver.method == "auto" else solver.method
    rows = _sketched_rows(tall, rank, solver, generator) if method == "randomized" else _gram_rows(tall, rank)
    if rows is None:
        u, s, vh = torch.linalg.svd(tall, full_matrices=False)
        method = "lapack"
    else:
        u, s, vh = _svd_within(tall, rows)
        method = "randomized" if method == "randomized" else "gram"
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    return (vh.mT, s, u.mT, method) if transposed else (u, s, vh, method)


def _tall(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] < matrix.shape[1] else matrix


def _gram(tall: Tensor, dtype: torch.dtype, *, scale: Tensor | float = 1.0) -> Tensor:
    """Return AᵀA / scale² (n, n), accumulated in `dtype` over blocks of rows."""
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=dtype, device=tall.device)
    for block in torch.split(tall, _GRAM_ROWS):
        block = block.to(dtype) / scale
        gram.addmm_(block.mT, block)
    return gram


def _gram_rows(tall: Tensor, rank: int) -> Tensor | None:
    """Return an orthonormal basis (n, rank) of the leading row space, or None where no Gram matrix is safe.

    A perturbation E of AᵀA costs its leading eigenvectors at most 2 · rank · ‖E‖₂ of the energy they capture, and
    rounding makes ‖E‖₂ some eps · σ₁². Against the energy that is discarded anyway that must be small.
    """
    # Without it, the squares of very small or large values leave the range of float32.
    scale = torch.linalg.vector_norm(tall, ord=torch.inf)
    if rank == tall.shape[1] or scale == 0:
        return None
    for dtype in dict.fromkeys((tall.dtype, torch.float64)):
        values, vectors = torch.linalg.eigh(_gram(tall, dtype, scale=scale))
        discarded = values[:-rank].clamp(min=0).sum(dtype=torch.float64)
        perturbation = 4 * torch.finfo(dtype).eps * values[-1].double()
        if 2 * rank * perturbation <= _GRAM_LOSS * discarded:
            leading: Tensor = vectors[:, -rank:].to(tall.dtype)
            return leading
    return None


def _sketched_rows(tall: Tensor, rank: int, solver: Solver, generator: Generator) -> Tensor:
    size = min(rank + solver.oversample, tall.shape[1])
    return subspace_iteration(tall.mT, size, power_iterations=solver.power_iterations, generator=generator)


def _svd_within(tall: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD of A V Vᵀ for orthonormal V (n, size): algorithm 5.1, with QR so that u is orthonormal too."""
    q, r = torch.linalg.qr(tall @ rows)
    u, s, vh = torch.linalg.svd(r)
    return q @ u, s, vh @ rows.mT


def _cheaper(shape: tuple[int, ...], rank: int, solver: Solver) -> str:
    """Return `exact` or `randomized` by operation counts, in units of matrix-product operations."""
    m, n = shape
    size = min(rank + solver.oversample, n)
    exact = 2 * m * n**2 + _EIGH_COST * n**3 + 2 * m * n * rank + _QR_COST * 2 * m * rank**2 + _SVD_COST * rank**3
    products = 2 * (2 * solver.power_iterations + 2) * m * n * size
    factorizations = _QR_COST * 2 * (solver.power_iterations * (m + n) + n + m) * size**2
    sketch = products + factorizations + _SVD_COST * size**3
    return "randomized" if _SKETCH_ADVANTAGE * sketch < exact else "exact"

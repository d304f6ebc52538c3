"""Truncated SVD from a sketch, checked against a bound on the optimal error."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf

from torch import Generator, Tensor

from lrzip.linalg.blocks.certificate import excess, interlacing_bound, squared_residual
from lrzip.linalg.blocks.direct import direct_svd
from lrzip.linalg.blocks.gram import squared_norm, tall
from lrzip.linalg.blocks.orthogonal import orthonormalize
from lrzip.linalg.blocks.precision import attainable, compute_dtype
from lrzip.linalg.blocks.rangefinder import power_iteration, srft_range, subspace_iteration
from lrzip.linalg.blocks.rayleigh_ritz import rayleigh_ritz
from lrzip.linalg.blocks.single_pass import single_pass_svd
from lrzip.linalg.gram_svd import find_subspace, project
from lrzip.linalg.interpolative import row_extraction_svd
from lrzip.linalg.solver import Solver, TruncatedSVD

Triplets = tuple[Tensor, Tensor, Tensor]
"""u (m, size), s (size,) and vh (size, n)."""


def sketched_svd(matrix: Tensor, rank: int, solver: Solver, generator: Generator) -> TruncatedSVD:
    """Return the leading `rank` singular triplets from a sketch, or from the Gram matrix if that misses the tolerance.

    Args:
        matrix: Finite, shape (m, n); its squares must neither overflow nor underflow.
        rank: Between 1 and min(m, n).
        solver: Its method is one of `SKETCHES`.
        generator: Source of the sketch, on the CPU.
    """
    columns = matrix.to(compute_dtype(matrix.dtype))
    u, s, vh = SKETCHES[solver.method](columns, rank, solver, generator)
    if solver.tolerance == inf:
        return TruncatedSVD(u[:, :rank], s[:rank], vh[:rank], solver.method, None)
    found = _checked(matrix, rank, solver, (u, s, vh), generator)
    if found.excess is not None and found.excess <= solver.tolerance:
        return found
    exact = project(
        matrix, find_subspace(matrix, rank, solver=replace(solver, method="gram"), generator=generator), rank
    )
    return replace(exact, method=f"{solver.method}, then {exact.method}")


def _checked(matrix: Tensor, rank: int, solver: Solver, triplets: Triplets, generator: Generator) -> TruncatedSVD:
    """Truncate triplets to a rank, with a bound on the excess of their error over the optimal error.

    Interlacing bounds the optimal error at no cost. Where that misses the tolerance, the Ritz values of the smaller
    side are used; this bound fails with a probability of at most 1e-6.

    Args:
        matrix: Shape (m, n).
        rank: Number of triplets to keep.
        solver: Method and tolerance.
        triplets: Triplets beyond the rank, if there are any, must come from a projection QᵀA.
        generator: Source of the start vectors of the bound, on the CPU.
    """
    u, s, vh = triplets[0][:, :rank], triplets[1][:rank], triplets[2][:rank]
    error = squared_residual(matrix, u * s, vh)
    floor = attainable(matrix.dtype, squared_norm(matrix))
    least = interlacing_bound(triplets[1], rank)
    if excess(error, least, floor) > solver.tolerance:
        columns = tall(matrix).to(u.dtype)
        vectors = triplets[2].mT if columns.shape == matrix.shape else triplets[0]
        least = max(least, rayleigh_ritz(columns, orthonormalize(vectors.double()), rank, generator).least)
    return TruncatedSVD(u, s, vh, solver.method, excess(error, least, floor), max(least, 0.0))


def _size(matrix: Tensor, rank: int, solver: Solver) -> int:
    return min(rank + solver.oversample, min(matrix.shape))


def _power(matrix: Tensor, rank: int, solver: Solver, generator: Generator) -> Triplets:
    size = _size(matrix, rank, solver)
    basis = power_iteration(matrix, size, power_iterations=solver.power_iterations, generator=generator)
    return direct_svd(matrix, basis)


def _subspace(matrix: Tensor, rank: int, solver: Solver, generator: Generator) -> Triplets:
    return direct_svd(matrix, _subspace_basis(matrix, rank, solver, generator))


def _subspace_basis(matrix: Tensor, rank: int, solver: Solver, generator: Generator) -> Tensor:
    size = _size(matrix, rank, solver)
    return subspace_iteration(matrix, size, power_iterations=solver.power_iterations, generator=generator)


def _srft(matrix: Tensor, rank: int, solver: Solver, generator: Generator) -> Triplets:
    return direct_svd(matrix, srft_range(matrix, _size(matrix, rank, solver), generator=generator))


def _row_extraction(matrix: Tensor, rank: int, solver: Solver, generator: Generator) -> Triplets:
    u, s, vh = row_extraction_svd(matrix, _subspace_basis(matrix, rank, solver, generator))
    return u[:, :rank], s[:rank], vh[:rank]


def _single_pass(matrix: Tensor, rank: int, solver: Solver, generator: Generator) -> Triplets:
    return single_pass_svd(matrix, rank, oversample=solver.oversample, generator=generator)


SKETCHES: Mapping[str, Callable[[Tensor, int, Solver, Generator], Triplets]] = {
    "randomized": _power,
    "subspace": _subspace,
    "srft": _srft,
    "row-extraction": _row_extraction,
    "single-pass": _single_pass,
}
"""Sketching methods by name."""

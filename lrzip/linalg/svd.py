"""Singular values and truncated SVD of dense matrices: each by the cheapest method that is as good as asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.certificate import excess, interlacing_bound, ritz_bound, squared_residual
from lrzip.linalg.blocks.direct import direct_svd
from lrzip.linalg.blocks.gram import gram, largest_element, product, rounding, safe_scale, squared_norm, tall
from lrzip.linalg.blocks.rangefinder import orthonormalize, power_iteration, srft_range, subspace_iteration
from lrzip.linalg.blocks.single_pass import single_pass_svd
from lrzip.linalg.blocks.sketched import sketched_subspace
from lrzip.linalg.blocks.sketches import gaussian
from lrzip.linalg.blocks.subspace import Subspace, attainable, compute_dtype, lapack_svd, leading_subspace, working
from lrzip.linalg.interpolative import row_extraction_svd

Triplets = tuple[Tensor, Tensor, Tensor]  # u (m, rank), s (rank,), vh (rank, n)
# The methods that end in `find_subspace`.
SUBSPACE_METHODS = ("auto", "gram")
# Eigenvalues of a float32 Gram matrix stand for all singular values if the smallest is right to this share.
_RESOLUTION = 1e-3
# Matrices with this many times more rows than columns tend to be well conditioned, so that float32 is tried first.
_TALL = 2
# Of u: where the image of the basis is less orthogonal than that, a QR factorization makes it so.
_ORTHOGONALITY = 1e-4
# A first look at how fast a spectrum falls: so many columns have to leave less than that share of the energy.
_PROBE_COLUMNS = 32
_PROBE_LEAVES = 0.05
_PROBE_FROM = 512
_PROBE_SHARE = 8


@dataclass(frozen=True)
class Solver:
    """How truncated SVDs are computed.

    Attributes:
        method: One of METHODS.
        oversample: Sketch vectors beyond the rank (Halko, Martinsson & Tropp 2011, section 4.2: 5 to 10).
        power_iterations: Applications of A Aᵀ to the sketch.
        tolerance: By which share the error may exceed the best possible one. Infinite leaves sketches unchecked.
    """

    method: str = "auto"
    oversample: int = 10
    power_iterations: int = 2
    tolerance: float = 1e-3


@dataclass(frozen=True)
class TruncatedSVD:
    """The leading singular triplets of a matrix (m, n).

    Attributes:
        u: (m, rank), orthonormal to 1e-4.
        s: (rank,), descending.
        vh: (rank, n), orthonormal to 1e-4. The basis that was computed first, of the smaller side, is orthonormal to
            rounding.
        method: What gave them.
        excess: Bound on ‖A − u s vh‖_F over the best possible error, less 1, or None if it was not checked. Errors
            below twenty units of rounding of ‖A‖_F count as none.
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    method: str
    excess: float | None


def singular_values(matrix: Tensor) -> Tensor:
    """Return all singular values of a matrix.

    float64 goes to LAPACK. Lower precisions go through the Gram matrix of the smaller side: in float32 where that gives
    the smallest one to 0.1 %, else in float64, whose eigenvalues are off by some eps₆₄ σ₁²: every σ above 1e-7 σ₁ is
    right to float32 precision, and what is below that is noise in a float32 matrix.

    Args:
        matrix: Real and finite, shape (m, n), any floating-point dtype and strides.

    Returns:
        (min(m, n),) float64, descending, on the device of `matrix`.

    Raises:
        ValueError: The matrix is not finite.
    """
    _check_finite(matrix)
    if matrix.dtype == torch.float64:
        values: Tensor = torch.linalg.svdvals(matrix)
        return values
    columns, scale = tall(matrix), safe_scale(matrix)
    if columns.shape[0] >= _TALL * columns.shape[1]:
        squares = torch.linalg.eigvalsh(gram(columns, dtype=torch.float32, scale=scale)).double()
        if float(squares[0]) * 2 * _RESOLUTION > rounding(squares, torch.float32):
            return _roots(squares) * scale
    squares = torch.linalg.eigvalsh(gram(columns, dtype=torch.float64, scale=scale))
    return _roots(squares) * scale


def truncated_svd(matrix: Tensor, rank: int, *, solver: Solver, generator: Generator) -> TruncatedSVD:
    """Return the leading `rank` singular triplets of a matrix.

    Whatever the method, the error exceeds the best possible one by at most `solver.tolerance`, and that is checked: a
    sketch that misses it, or that cannot be shown to meet it, gives way to the Gram matrix.

    Args:
        matrix: Real and finite, shape (m, n), any floating-point dtype and strides. float16 and bfloat16 are computed
            in float32.
        rank: Between 1 and min(m, n).
        solver: Method and its parameters.
        generator: Source of sketches, on the CPU.

    Returns:
        u, s, vh in the dtype computed in and on the device of `matrix`, with the method and the checked excess.

    Raises:
        ValueError: The rank is out of range, or the matrix is not finite.
    """
    if not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"`rank` must be between 1 and {min(matrix.shape)}, got {rank}.")
    _check_finite(matrix)
    scale = safe_scale(matrix)
    if scale != 1:
        found = truncated_svd(matrix / scale, rank, solver=solver, generator=generator)
        return replace(found, s=found.s * scale)
    if solver.method in SUBSPACE_METHODS:
        return project(matrix, find_subspace(matrix, rank, solver=solver, generator=generator), rank)
    return _exact(matrix, rank) if solver.method == "exact" else _sketched(matrix, rank, solver, generator)


def find_subspace(matrix: Tensor, rank: int, *, solver: Solver, generator: Generator) -> Subspace:
    """Return the leading `rank` singular vectors of the smaller side of a matrix, by `auto` or `gram`.

    `gram` takes eigenvectors of the Gram matrix: all, or the leading ones by block Lanczos, whichever costs less; in
    float32 where that provably meets the tolerance, else in float64, and from LAPACK where even that would lie. `auto`
    first tries a sketch where a few directions hold nearly all energy.

    Args:
        matrix: Finite, (m, n).
        rank: Between 1 and min(m, n).
        solver: Whose method is `auto` or `gram`.
        generator: Source of sketches, on the CPU.
    """
    left = _left_by_probe(matrix, rank, generator) if solver.method == "auto" else 1.0
    if left <= _PROBE_LEAVES:
        found = sketched_subspace(
            matrix, rank, tolerance=solver.tolerance, oversample=solver.oversample, generator=generator
        )
        if found is not None and found.excess(rank) <= solver.tolerance:
            return found
    # σ₁² is at least the mean of what the probe found; what float32 rounds off of it may be all that is left.
    rounded = rank * rounding(torch.tensor((1 - left) / min(rank, _PROBE_COLUMNS)), torch.float32)
    coarse = rank < _PROBE_COLUMNS or rounded <= solver.tolerance * left
    return leading_subspace(matrix, rank, tolerance=solver.tolerance, generator=generator, coarse=coarse)


def project(matrix: Tensor, subspace: Subspace, rank: int) -> TruncatedSVD:
    """Return the singular triplets of a matrix within the leading `rank` vectors of a subspace of its smaller side.

    The images of singular vectors are orthogonal, and their norms are the singular values. Rounding of the vectors
    shows as eps (σ₁ / σᵢ)²; where that is too much, a QR factorization and a small SVD put it right (algorithm 5.1 of
    Halko, Martinsson & Tropp 2011).

    Args:
        matrix: (m, n), any floating-point dtype.
        subspace: Of this matrix, with at least `rank` vectors.
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
    return TruncatedSVD(u, s, vh, subspace.method, subspace.excess(rank))


def _exact(matrix: Tensor, rank: int) -> TruncatedSVD:
    u, s, vh = lapack_svd(matrix.to(compute_dtype(matrix.dtype)))
    return TruncatedSVD(u[:, :rank], s[:rank], vh[:rank], "lapack", 0.0)


def _sketched(matrix: Tensor, rank: int, solver: Solver, generator: Generator) -> TruncatedSVD:
    columns = matrix.to(compute_dtype(matrix.dtype))
    u, s, vh = _SKETCHES[solver.method](columns, rank, solver, generator)
    if solver.tolerance == inf:
        return TruncatedSVD(u[:, :rank], s[:rank], vh[:rank], solver.method, None)
    found = _checked(matrix, rank, solver.method, (u, s, vh))
    if found.excess is not None and found.excess <= solver.tolerance:
        return found
    exact = truncated_svd(matrix, rank, solver=replace(solver, method="gram"), generator=generator)
    return TruncatedSVD(exact.u, exact.s, exact.vh, f"{solver.method}, then {exact.method}", exact.excess)


def _checked(matrix: Tensor, rank: int, method: str, triplets: Triplets) -> TruncatedSVD:
    """Cut triplets to a rank, with a bound on how much that costs against the optimum.

    Those beyond the rank, if any, have to come from a projection QᵀA.
    """
    u, s, vh = (part[:, :rank] if index == 0 else part[:rank] for index, part in enumerate(triplets))
    error = squared_residual(matrix, u * s, vh)
    floor = attainable(matrix.dtype, squared_norm(matrix))
    found = excess(error, interlacing_bound(triplets[1], rank), floor)
    if found > 0:
        columns = tall(matrix).to(u.dtype)
        basis = vh.mT if columns.shape == matrix.shape else u
        found = min(found, excess(error, ritz_bound(columns, basis), floor))
    return TruncatedSVD(u, s, vh, method, found)


def _left_by_probe(matrix: Tensor, rank: int, generator: Generator) -> float:
    """Return the share of the energy that a small sketch leaves; 1 where a larger one would not pay anyway."""
    side = min(matrix.shape)
    if side < _PROBE_FROM or rank > side // _PROBE_SHARE:
        return 1.0
    columns, _ = working(matrix)
    start = gaussian(side, min(rank, _PROBE_COLUMNS), generator=generator, dtype=columns.dtype, device=matrix.device)
    basis = orthonormalize(product(columns, start))
    energy, captured = (float(torch.linalg.vector_norm(part)) ** 2 for part in (columns, product(columns.mT, basis)))
    return max(energy - captured, 0.0) / energy if energy else 0.0


def _roots(squares: Tensor) -> Tensor:
    roots: Tensor = squares.clamp(min=0).sqrt().flip(0)
    return roots


def _check_finite(matrix: Tensor) -> None:
    if not largest_element(matrix) < inf:
        raise ValueError("The matrix contains NaN or Inf.")


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


_SKETCHES: Mapping[str, Callable[[Tensor, int, Solver, Generator], Triplets]] = {
    "randomized": _power,
    "subspace": _subspace,
    "srft": _srft,
    "row-extraction": _row_extraction,
    "single-pass": _single_pass,
}
METHODS = (*SUBSPACE_METHODS, "exact", *_SKETCHES)

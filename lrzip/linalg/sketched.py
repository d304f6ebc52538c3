"""Leading singular subspaces from a sketch, for spectra that fall fast, and the proof of how good they are."""

from collections.abc import Callable
from math import ceil, inf, log

import torch
from torch import Generator, Tensor

from lrzip.linalg.certificate import interlacing_bound, ritz_gap, squared_residual
from lrzip.linalg.gram import gram, product, rounding, squared_norm
from lrzip.linalg.lanczos import rest_norm
from lrzip.linalg.rangefinder import orthonormalize
from lrzip.linalg.sketches import gaussian
from lrzip.linalg.subspace import Subspace, attainable, working

_OVERSAMPLE = 48
# Of which so many are enough to tell the last direction wanted from the rest, once they have converged.
_KEPT = 24
# Rows that are converted to float64 at a time.
_ROWS = 1024
# What a Gaussian sketch misses before the first application of AᵀA, of σ² of the last direction wanted: 8 was measured,
# and one application too many costs less than another pass in float64.
_START = 100.0
_APPLICATIONS = 4
_PASSES = 3


def sketched_subspace(
    matrix: Tensor, rank: int, *, tolerance: float, oversample: int, generator: Generator
) -> Subspace | None:
    """Return the leading `rank` singular vectors of the smaller side from a sketch, or None if that cannot be proven.

    AᵀA is applied to a Gaussian sketch of `rank` + `oversample` columns (Halko, Martinsson & Tropp 2011, algorithm 4.4,
    from the smaller side). Where next to nothing lies beyond the sketch, interlacing proves that one application is
    enough. Else there are as many as the decay within the sketch asks for, and one in float64, whose Ritz values and
    residuals are the proof (`lrzip.linalg.certificate.ritz_gap`).

    Args:
        matrix: Finite, (m, n); computed in float32, or float64 if it has that dtype.
        rank: Between 1 and min(m, n).
        tolerance: Of `excess(rank)`.
        oversample: Columns of the sketch beyond the rank, 48 at least.
        generator: Source of sketch and probes, on the CPU.
    """
    columns, scale = working(matrix)
    n, dtype = columns.shape[1], columns.dtype
    size = min(rank + max(oversample, _OVERSAMPLE), n)
    start = gaussian(n, size, generator=generator, dtype=dtype, device=matrix.device)
    squares, sketch = _applied(columns, start)
    allowed = max(tolerance * float(squares[rank:].sum()), attainable(dtype, float(squares.sum())))
    enough = _enough(squares, rank, allowed)
    if enough is not None:
        found = _interlaced(matrix, columns, orthonormalize(sketch[:, :enough]), rank, scale)
        if found.excess(rank) <= tolerance:
            return found
    applications = _applications(squares, rank, 2 * allowed)
    if applications > _APPLICATIONS:
        return None
    for _ in range(applications - 1):
        _, sketch = _applied(columns, orthonormalize(sketch))
    basis = orthonormalize(sketch[:, : rank + _KEPT])
    return _refined(matrix, columns, basis, rank, tolerance, scale, generator)


def _applied(columns: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values of QᵀA for an orthonormal basis Q of AX, and σᵢvᵢ, its scaled right vectors.

    Their span is that of AᵀAX, of which, without the basis in between, what is below 3e-4 σ₁ would be lost.
    """
    image = product(columns.mT, orthonormalize(product(columns, start)))
    squares, rotation = torch.linalg.eigh(gram(image, dtype=torch.float64))
    return squares.flip(0).clamp(min=0), image @ rotation.flip(1).to(image.dtype)


def _interlaced(matrix: Tensor, columns: Tensor, basis: Tensor, rank: int, scale: float) -> Subspace:
    """Return the leading singular vectors within a basis (n, size); what they miss, by interlacing."""
    image = product(columns, basis)
    squares, rotation = torch.linalg.eigh(gram(image, dtype=torch.float64))
    squares, rotation = squares.flip(0).clamp(min=0), rotation.flip(1).to(basis.dtype)
    vectors = basis @ rotation[:, :rank]
    energy = squared_norm(columns)
    error = squared_residual(columns, image @ rotation[:, :rank], vectors.mT)
    as_good_as_none = error <= attainable(basis.dtype, energy)
    missed = 0.0 if as_good_as_none else max(error - interlacing_bound(squares.sqrt(), rank), 0.0)
    return _subspace(matrix, squares[:rank], vectors, energy, missed / rank, scale)


def _refined(
    matrix: Tensor,
    columns: Tensor,
    basis: Tensor,
    rank: int,
    tolerance: float,
    scale: float,
    generator: Generator,
) -> Subspace | None:
    """Apply AᵀA in float64 until the leading Ritz vectors of a basis (n, size) are proven to be good enough."""
    basis = orthonormalize(basis.double())
    for _ in range(_PASSES):
        projected, images, energy = _pass(columns, basis)
        residual = images - basis @ projected
        rest = rest_norm(_operator(columns), basis.to(columns.dtype), generator).upper
        missed = ritz_gap(projected, residual.mT @ residual, rest, rank)
        values, rotation = torch.linalg.eigh(projected)
        squares = values[-rank:].flip(0).clamp(min=0)
        vectors = (basis @ rotation[:, -rank:].flip(1)).to(columns.dtype)
        slack = missed / rank + 2 * rounding(squares, torch.float64)
        found = _subspace(matrix, squares, vectors, energy, slack, scale)
        if found.excess(rank) <= tolerance:
            return found
        basis = orthonormalize(images)
    return None


def _subspace(matrix: Tensor, squares: Tensor, vectors: Tensor, energy: float, slack: float, scale: float) -> Subspace:
    """Return what was found for A / scale, for A."""
    shape, energy = (matrix.shape[0], matrix.shape[1]), energy * scale**2
    floor = attainable(matrix.dtype, energy)
    return Subspace(squares.cpu() * scale**2, vectors, energy, shape, slack * scale**2, floor, "randomized")


def _operator(columns: Tensor) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        return product(columns.mT, product(columns, x))

    return apply


def _pass(columns: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return QᵀAᵀAQ, AᵀAQ and ‖A‖_F² in float64, reading A once."""
    size = basis.shape[1]
    projected, images, energy = basis.new_zeros(size, size), torch.zeros_like(basis), 0.0
    for rows in torch.split(columns, _ROWS):
        doubled = rows.double()
        image = product(doubled, basis)
        projected += image.mT @ image
        images += product(doubled.mT, image)
        energy += float(torch.linalg.vector_norm(doubled)) ** 2
    return projected, images, energy


def _enough(squares: Tensor, rank: int, allowed: float) -> int | None:
    """Return how many directions of a sketch leave less than some energy, if it falls on as it does from `rank` on."""
    first, last = float(squares[rank - 1]), float(squares[-1])
    if not last > 0:
        return len(squares)
    decay = (last / first) ** (1 / (len(squares) - rank))
    beyond = last * decay / (1 - decay) if decay < 1 else inf
    left = beyond + squares.sum() - squares.cumsum(0)
    return int((left > allowed / 2).sum()) + 1 if beyond <= allowed / 2 else None


def _applications(squares: Tensor, rank: int, allowed: float) -> int:
    """Return how many applications of AᵀA take what the leading vectors miss below some energy."""
    first, last = float(squares[rank - 1]), float(squares[-1])
    if not 0 < last < first or not allowed > 0:
        return _APPLICATIONS + 1
    return max(ceil(log(_START * first / allowed) / (2 * log(first / last))), 1)

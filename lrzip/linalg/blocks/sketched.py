"""Leading singular subspaces from a sketch, for rapidly decaying spectra, with a proof of their accuracy."""

from dataclasses import dataclass
from math import ceil, inf, log

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.certificate import interlacing_bound, squared_residual
from lrzip.linalg.blocks.gram import gram, product, squared_norm
from lrzip.linalg.blocks.orthogonal import orthonormalize
from lrzip.linalg.blocks.precision import attainable, working
from lrzip.linalg.blocks.rayleigh_ritz import rayleigh_ritz
from lrzip.linalg.blocks.sketches import gaussian
from lrzip.linalg.blocks.subspace import Subspace

_OVERSAMPLE = 48
# Columns beyond the rank that are kept after convergence, to separate the last wanted direction from the rest.
_KEPT = 24
# Energy that a Gaussian sketch misses before the first application of AᵀA, relative to σ² of the last wanted direction.
# The measured ratio is 8; one application too many costs less than another pass in float64.
_START = 100.0
_APPLICATIONS = 4
_PASSES = 3


def sketched_subspace(
    matrix: Tensor, rank: int, *, tolerance: float, oversample: int, generator: Generator
) -> Subspace | None:
    """Return the leading `rank` singular vectors of the smaller side from a sketch, or None if unproven.

    AᵀA is applied to a Gaussian sketch of `rank` + `oversample` columns (Halko, Martinsson & Tropp 2011, algorithm 4.4,
    from the smaller side). If the sketch captures nearly all energy, interlacing proves that one application is enough.
    Otherwise AᵀA is applied as often as the decay within the sketch requires, and once more in float64, where Ritz
    values and residuals are the proof (`lrzip.linalg.blocks.rayleigh_ritz`).

    Args:
        matrix: Finite, shape (m, n); computed in float32, or in float64 if it has that dtype.
        rank: Between 1 and min(m, n).
        tolerance: Largest `excess(rank)`.
        oversample: Columns of the sketch beyond the rank; at least 48 are used.
        generator: Source of the sketch and of the start vectors of bounds, on the CPU.
    """
    search = _Search(matrix, *working(matrix), rank)
    columns, dtype = search.columns, search.columns.dtype
    n = columns.shape[1]
    size = min(rank + max(oversample, _OVERSAMPLE), n)
    start = gaussian(n, size, generator=generator, dtype=dtype, device=matrix.device)
    squares, sketch = _applied(columns, start)
    allowed = max(tolerance * float(squares[rank:].sum()), attainable(dtype, float(squares.sum())))
    enough = _enough(squares, rank, allowed)
    if enough is not None:
        found = search.interlaced(orthonormalize(sketch[:, :enough]))
        if found.excess(rank) <= tolerance:
            return found
    applications = _applications(squares, rank, 2 * allowed)
    if applications > _APPLICATIONS:
        return None
    for _ in range(applications - 1):
        _, sketch = _applied(columns, orthonormalize(sketch))
    return search.refined(orthonormalize(sketch[:, : rank + _KEPT]), tolerance, generator)


@dataclass(frozen=True)
class _Search:
    """Search for the leading `rank` singular vectors of the smaller side of a matrix.

    Attributes:
        matrix: A, as given.
        columns: A or Aᵀ, tall, in the dtype to compute in and divided by `scale`.
        scale: Power of two that keeps squares in range.
        rank: Number of wanted vectors.
    """

    matrix: Tensor
    columns: Tensor
    scale: float
    rank: int

    def interlaced(self, basis: Tensor) -> Subspace:
        """Return the leading vectors within a basis (n, size), with the interlacing bound on the energy they miss."""
        image = product(self.columns, basis)
        squares, rotation = torch.linalg.eigh(gram(image, dtype=torch.float64))
        squares, rotation = squares.flip(0).clamp(min=0), rotation.flip(1).to(basis.dtype)
        vectors = basis @ rotation[:, : self.rank]
        energy = squared_norm(self.columns)
        error = squared_residual(self.columns, image @ rotation[:, : self.rank], vectors.mT)
        negligible = error <= attainable(basis.dtype, energy)
        missed = 0.0 if negligible else max(error - interlacing_bound(squares.sqrt(), self.rank), 0.0)
        return self._found(squares[: self.rank], vectors, energy, missed / self.rank)

    def refined(self, basis: Tensor, tolerance: float, generator: Generator) -> Subspace | None:
        """Apply AᵀA in float64 until the leading Ritz vectors of a basis (n, size) provably meet the tolerance."""
        basis = orthonormalize(basis.double())
        for _ in range(_PASSES):
            ritz = rayleigh_ritz(self.columns, basis, self.rank, generator)
            vectors = (basis @ ritz.rotation).to(self.columns.dtype)
            found = self._found(ritz.squares, vectors, ritz.energy, ritz.slack)
            if found.excess(self.rank) <= tolerance:
                return found
            basis = orthonormalize(ritz.images)
        return None

    def _found(self, squares: Tensor, vectors: Tensor, energy: float, slack: float) -> Subspace:
        """Return the subspace of A from the numbers of A / scale."""
        shape, unscaled = (self.matrix.shape[0], self.matrix.shape[1]), energy * self.scale**2
        floor = attainable(self.matrix.dtype, unscaled)
        return Subspace(
            squares.cpu() * self.scale**2, vectors, unscaled, shape, slack * self.scale**2, floor, "randomized"
        )


def _applied(columns: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values of QᵀA for an orthonormal basis Q of AX, and σᵢvᵢ, its scaled right vectors.

    Their span is that of AᵀAX. Without the orthonormal basis in between, directions below 3e-4 σ₁ would be lost.
    """
    image = product(columns.mT, orthonormalize(product(columns, start)))
    squares, rotation = torch.linalg.eigh(gram(image, dtype=torch.float64))
    return squares.flip(0).clamp(min=0), image @ rotation.flip(1).to(image.dtype)


def _enough(squares: Tensor, rank: int, allowed: float) -> int | None:
    """Return how many directions of a sketch leave less than an allowed energy; None if the sketch is too small.

    The energy beyond the sketch is extrapolated: a geometric series with the mean decay from `rank` to its end.
    """
    first, last = float(squares[rank - 1]), float(squares[-1])
    if not last > 0:
        return len(squares)
    decay = (last / first) ** (1 / (len(squares) - rank))
    beyond = last * decay / (1 - decay) if decay < 1 else inf
    left = beyond + squares.sum() - squares.cumsum(0)
    return int((left > allowed / 2).sum()) + 1 if beyond <= allowed / 2 else None


def _applications(squares: Tensor, rank: int, allowed: float) -> int:
    """Return how many applications of AᵀA bring the energy that the leading vectors miss below an allowed energy."""
    first, last = float(squares[rank - 1]), float(squares[-1])
    if not 0 < last < first or not allowed > 0:
        return _APPLICATIONS + 1
    return max(ceil(log(_START * first / allowed) / (2 * log(first / last))), 1)

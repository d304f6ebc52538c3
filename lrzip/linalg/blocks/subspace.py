"""Leading singular subspaces from Gram matrices: exact to a stated share of the energy that is discarded anyway."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.cost import prefers_gram, prefers_partial
from lrzip.linalg.blocks.gram import gram, product, rounding, safe_scale, squared_norm, tall
from lrzip.linalg.blocks.lanczos import block_lanczos, block_size
from lrzip.linalg.blocks.sketches import gaussian

_NotConverged = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # which its stubs forget
# Factors in some dtype cannot come nearer to a matrix than about twenty units of rounding of its norm.
_ATTAINABLE = 20.0
# Beyond this share of all dimensions a Krylov space costs more than all eigenvectors.
_LIMIT = 0.7


@dataclass(frozen=True)
class Subspace:
    """Leading singular vectors of the smaller side of a matrix A.

    Attributes:
        squares: σᵢ² as far as they are known, descending, float64 on the CPU: all, or as many as there are vectors.
        vectors: (min(m, n), count), orthonormal, in order.
        energy: ‖A‖_F².
        shape: (m, n).
        slack: Bound on the energy that `rank` vectors miss of what the best ones capture, divided by rank.
        floor: Squared error below which no factors of this precision can come.
        method: `gram`, `lanczos` or `lapack`, with ` in float64` where that was needed.
    """

    squares: Tensor
    vectors: Tensor
    energy: float
    shape: tuple[int, int]
    slack: float
    floor: float
    method: str

    def excess(self, rank: int) -> float:
        """Return a bound on ‖A − A V Vᵀ‖_F over its optimum, less 1, for the leading `rank` vectors V."""
        discarded, missed = max(self.energy - float(self.squares[:rank].sum()), 0.0), rank * self.slack
        if rank == self.vectors.shape[0] or discarded + missed <= self.floor:
            return 0.0
        return sqrt(1 + missed / max(discarded - missed, self.floor)) - 1


def full_subspace(
    matrix: Tensor, count: int, *, tolerance: float, rank: int | None = None, coarse: bool = True
) -> Subspace:
    """Return all singular values and the leading `count` singular vectors of the smaller side.

    Args:
        matrix: Finite, (m, n); computed in float32, or float64 if it has that dtype.
        count: Vectors wanted.
        tolerance: Of `excess(rank)`; float32 gives way to float64, and that to LAPACK, until it is met.
        rank: For which the tolerance has to hold; None takes float32 as it comes.
        coarse: Whether float32 is worth a try.
    """
    columns, scale = tall(matrix), safe_scale(matrix)
    for dtype in _precisions(matrix.dtype, coarse=coarse):
        square = gram(columns, dtype=dtype, scale=scale)
        energy = _energy(matrix, square, scale)
        try:
            values, vectors = torch.linalg.eigh(square)
        except _NotConverged:
            continue
        del square
        squares = values.flip(0).double().cpu().clamp(min=0) * scale**2
        leading = vectors[:, len(vectors) - count :].flip(1).to(compute_dtype(matrix.dtype)).contiguous()
        # Ky Fan: rounding may raise the sum that these vectors capture by so much, and lower that of the best ones.
        slack = 2 * rounding(squares, dtype)
        floor, method = attainable(matrix.dtype, energy), _named("gram", matrix, dtype)
        found = Subspace(squares, leading, energy, _shape(matrix), slack, floor, method)
        if rank is None or found.excess(rank) <= tolerance:
            return found
    return _lapack_subspace(matrix, count)


def leading_subspace(
    matrix: Tensor, rank: int, *, tolerance: float, generator: Generator, coarse: bool = True
) -> Subspace:
    """Return the leading `rank` singular vectors of the smaller side, by what costs least.

    Args:
        matrix: Finite, (m, n); computed in float32, or float64 if it has that dtype.
        rank: Between 1 and min(m, n).
        tolerance: Of `excess(rank)`.
        generator: Source of the start of a Krylov space.
        coarse: Whether float32 is worth a try.
    """
    columns = tall(matrix)
    if prefers_partial(columns.shape[1], rank, matrix.device.type):
        found = _krylov_subspace(matrix, rank, tolerance, generator, coarse=coarse)
        if found:
            return found
    return full_subspace(matrix, rank, tolerance=tolerance, rank=rank, coarse=coarse)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that matrices of some dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def working(matrix: Tensor) -> tuple[Tensor, float]:
    """Return A or Aᵀ, tall, in the dtype to compute in and divided by a scale that keeps squares in range, and that."""
    columns, scale = tall(matrix).to(compute_dtype(matrix.dtype)), safe_scale(matrix)
    return columns if scale == 1 else columns / scale, scale


def _krylov_subspace(
    matrix: Tensor, rank: int, tolerance: float, generator: Generator, *, coarse: bool
) -> Subspace | None:
    columns, scale = tall(matrix), safe_scale(matrix)
    m, n = columns.shape
    for dtype in _precisions(matrix.dtype, coarse=coarse):
        apply, energy = _operator(columns, dtype, scale, by_gram=prefers_gram(m, n, rank))
        ritz = block_lanczos(
            apply,
            rank,
            start=gaussian(n, block_size(rank), generator=generator, dtype=dtype, device=matrix.device),
            trace=energy / scale**2,
            tolerance=1 - (1 + tolerance) ** -2,
            limit=int(_LIMIT * n),
            generator=generator,
        )
        if ritz is None:
            return None
        slack = ritz.missed / rank + 2 * rounding(ritz.values, dtype)
        found = Subspace(
            ritz.values.cpu() * scale**2,
            ritz.vectors.to(compute_dtype(matrix.dtype)),
            energy,
            _shape(matrix),
            slack * scale**2,
            attainable(matrix.dtype, energy),
            _named("lanczos", matrix, dtype),
        )
        if found.excess(rank) <= tolerance:
            return found
    return None


def _operator(
    columns: Tensor, dtype: torch.dtype, scale: float, *, by_gram: bool
) -> tuple[Callable[[Tensor], Tensor], float]:
    """Return x ↦ AᵀAx / scale², and ‖A‖_F²."""
    if by_gram:
        square = gram(columns, dtype=dtype, scale=scale)
        return square.matmul, _energy(columns, square, scale)
    scaled = columns.to(dtype) if scale == 1 else columns.to(dtype) / scale

    def apply(x: Tensor) -> Tensor:
        return product(scaled.mT, product(scaled, x))

    return apply, squared_norm(scaled) * scale**2


def _energy(matrix: Tensor, square: Tensor, scale: float) -> float:
    """Return ‖A‖_F², from the Gram matrix where that is the more exact."""
    return float(square.trace()) * scale**2 if square.dtype == torch.float64 else squared_norm(matrix)


def _lapack_subspace(matrix: Tensor, count: int) -> Subspace:
    columns = tall(matrix).to(compute_dtype(matrix.dtype))
    values, rows = lapack_svd(columns)[1:]
    vectors = rows[:count].mT
    squares = values.double().cpu().square()
    energy = float(squares.sum())
    floor = attainable(matrix.dtype, energy)
    return Subspace(squares, vectors, energy, _shape(matrix), 0.0, floor, "lapack")


def lapack_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD by LAPACK; in float64 should the divide-and-conquer of float32 not converge."""
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except _NotConverged:
        # Columns of other norms make another iteration; a QR factorization first changes them without changing σ.
        q, r = torch.linalg.qr(matrix.double())
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
        u = q @ u
    return u.to(matrix.dtype), s.to(matrix.dtype), vh.to(matrix.dtype)


def _precisions(dtype: torch.dtype, *, coarse: bool) -> Iterator[torch.dtype]:
    if dtype != torch.float64 and coarse:
        yield torch.float32
    yield torch.float64


def attainable(dtype: torch.dtype, energy: float) -> float:
    """Return the squared error, of a matrix with ‖A‖_F² = energy, below which factors of that precision cannot come."""
    return max((_ATTAINABLE * torch.finfo(compute_dtype(dtype)).eps) ** 2 * energy, torch.finfo(torch.float64).tiny)


def _shape(matrix: Tensor) -> tuple[int, int]:
    return matrix.shape[0], matrix.shape[1]


def _named(method: str, matrix: Tensor, dtype: torch.dtype) -> str:
    return method if dtype == compute_dtype(matrix.dtype) else f"{method} in float64"

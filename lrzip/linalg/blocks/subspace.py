"""Leading singular subspaces from Gram matrices, with a bound on the energy that rounding makes them miss."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.cost import prefers_gram, prefers_partial
from lrzip.linalg.blocks.gram import gram, product, rounding, safe_scale, squared_norm, tall
from lrzip.linalg.blocks.lanczos import block_lanczos, block_size
from lrzip.linalg.blocks.lapack import NotConverged, lapack_svd
from lrzip.linalg.blocks.precision import attainable, compute_dtype
from lrzip.linalg.blocks.sketches import gaussian

# Beyond this share of all dimensions a Krylov space costs more than all eigenvectors.
_LIMIT = 0.7


@dataclass(frozen=True)
class Subspace:
    """Leading singular vectors of the smaller side of a matrix A.

    Attributes:
        squares: Known σᵢ², descending, float64 on the CPU: all, or as many as there are vectors.
        vectors: (min(m, n), count), orthonormal, in the order of `squares`.
        energy: ‖A‖_F².
        shape: (m, n).
        slack: Bound, per vector, on the energy that the leading vectors miss compared with the best ones.
        floor: Squared error below which factors of this precision cannot approximate A.
        method: `gram`, `lanczos`, `lapack` or `randomized`, followed by ` in float64` if float32 was not enough.
    """

    squares: Tensor
    vectors: Tensor
    energy: float
    shape: tuple[int, int]
    slack: float
    floor: float
    method: str

    def excess(self, rank: int) -> float:
        """Return a bound on ‖A − A V Vᵀ‖_F over its optimum, minus 1, for the leading `rank` vectors V."""
        discarded, missed = max(self.energy - float(self.squares[:rank].sum()), 0.0), rank * self.slack
        if rank == self.vectors.shape[0] or discarded + missed <= self.floor:
            return 0.0
        return sqrt(1 + missed / max(discarded - missed, self.floor)) - 1

    def least(self, rank: int) -> float:
        """Return a lower bound on the squared error of the best approximation of a rank."""
        if rank == self.vectors.shape[0]:
            return 0.0
        return max(self.energy - float(self.squares[:rank].sum()) - rank * self.slack, 0.0)


def full_subspace(
    matrix: Tensor, count: int, *, tolerance: float, rank: int | None = None, coarse: bool = True
) -> Subspace:
    """Return all singular values and the leading `count` singular vectors of the smaller side.

    Args:
        matrix: Finite, shape (m, n); computed in float32, or in float64 if it has that dtype.
        count: Number of vectors.
        tolerance: Largest `excess(rank)`. Until it is met, float32 gives way to float64, and float64 to LAPACK.
        rank: Rank for which the tolerance must hold; None accepts the first result.
        coarse: Whether to try float32 first.
    """
    columns, scale = tall(matrix), safe_scale(matrix)
    for dtype in _precisions(matrix.dtype, coarse=coarse):
        square = gram(columns, dtype=dtype, scale=scale)
        energy = _energy(matrix, square, scale)
        try:
            values, vectors = torch.linalg.eigh(square)
        except NotConverged:
            continue
        del square
        squares = values.flip(0).double().cpu().clamp(min=0) * scale**2
        leading = vectors[:, len(vectors) - count :].flip(1).to(compute_dtype(matrix.dtype)).contiguous()
        # By Ky Fan's theorem, rounding may raise the energy that these vectors capture, and lower that of the best
        # ones, by this much per vector.
        slack = 2 * rounding(squares, dtype)
        floor, method = attainable(matrix.dtype, energy), _named("gram", matrix, dtype)
        found = Subspace(squares, leading, energy, _shape(matrix), slack, floor, method)
        if rank is None or found.excess(rank) <= tolerance:
            return found
    return _lapack_subspace(matrix, count)


def leading_subspace(
    matrix: Tensor, rank: int, *, tolerance: float, generator: Generator, coarse: bool = True
) -> Subspace:
    """Return the leading `rank` singular vectors of the smaller side, by the cheaper of Lanczos and all eigenvectors.

    Args:
        matrix: Finite, shape (m, n); computed in float32, or in float64 if it has that dtype.
        rank: Between 1 and min(m, n).
        tolerance: Largest `excess(rank)`.
        generator: Source of the start of a Krylov space, on the CPU.
        coarse: Whether to try float32 first.
    """
    columns = tall(matrix)
    if prefers_partial(columns.shape[1], rank, matrix.device.type):
        found = _krylov_subspace(matrix, rank, tolerance, generator, coarse=coarse)
        if found:
            return found
    return full_subspace(matrix, rank, tolerance=tolerance, rank=rank, coarse=coarse)


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
    """Return ‖A‖_F², from the Gram matrix if that is more precise."""
    return float(square.trace()) * scale**2 if square.dtype == torch.float64 else squared_norm(matrix)


def _lapack_subspace(matrix: Tensor, count: int) -> Subspace:
    columns = tall(matrix).to(compute_dtype(matrix.dtype))
    values, rows = lapack_svd(columns)[1:]
    vectors = rows[:count].mT
    squares = values.double().cpu().square()
    energy = float(squares.sum())
    floor = attainable(matrix.dtype, energy)
    return Subspace(squares, vectors, energy, _shape(matrix), 0.0, floor, "lapack")


def _precisions(dtype: torch.dtype, *, coarse: bool) -> Iterator[torch.dtype]:
    if dtype != torch.float64 and coarse:
        yield torch.float32
    yield torch.float64


def _shape(matrix: Tensor) -> tuple[int, int]:
    return matrix.shape[0], matrix.shape[1]


def _named(method: str, matrix: Tensor, dtype: torch.dtype) -> str:
    return method if dtype == compute_dtype(matrix.dtype) else f"{method} in float64"

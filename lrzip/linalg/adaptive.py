"""Fixed-precision approximation: orthonormal bases that grow until the error is at most a given tolerance."""

from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.orthogonal import ensure_orthogonal, orthonormalize
from lrzip.linalg.blocks.scaling import UnitScaled, unit_scaled
from lrzip.linalg.blocks.sketches import gaussian

# Residuals below this many eps times the norm of the column or matrix are rounding errors.
_ROUNDING = 10
# A squared error below this many eps · ‖A‖² is not accurate to 1 % as a difference of sums of squares (Yu, Gu & Li
# 2018, theorem 3: errors below √(4 · unit roundoff / 0.01) ‖A‖, which is 2e-7 ‖A‖ in float64 and 5e-3 ‖A‖ in float32).
_TRUSTED = 200
# Rows of the residual that are formed at a time.
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class QB:
    """A factorization A ≈ q b with orthonormal q, and its error.

    Attributes:
        q: Shape (m, l), orthonormal columns.
        b: qᵀA, shape (l, n).
        error: ‖A − q b‖_F / ‖A‖_F; 0 for a zero matrix.
        norm: ‖A‖_F.
    """

    q: Tensor
    b: Tensor
    error: float
    norm: float


def adaptive_range(matrix: Tensor, tolerance: float, *, probes: int = 10, generator: Generator) -> Tensor:
    """Return an orthonormal basis that grows by single vectors until ‖A − QQᵀA‖₂ ≤ `tolerance`.

    Halko, Martinsson & Tropp (2011), algorithm 4.2, with every new vector orthogonalized twice. `probes` products
    (I − QQᵀ)Aω bound the error at every size (lemma 4.1), and the oldest one becomes the next vector of the basis.

    Errors below about 80 eps ‖A‖_F cannot be distinguished from rounding errors. With a smaller tolerance the basis
    stops growing there, since further vectors would be noise.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        tolerance: Absolute bound on the spectral norm of the error, not negative.
        probes: r ≥ 1. The error exceeds `tolerance` with a probability of at most min(m, n) · 10^-r.
        generator: Source of the random products, on the CPU.

    Returns:
        q (m, l) with orthonormal columns, in the dtype and on the device of `matrix`; l = 0 if ‖A‖₂ itself is at most
        the tolerance, and at most min(m, n). l exceeds the smallest possible size, the more the slower the spectrum
        decays.
    """
    scaled = unit_scaled(matrix)
    residuals = scaled @ _gaussian(matrix, probes, generator)  # (m, probes)
    basis = matrix.new_empty(matrix.shape[0], 0)
    norms = torch.linalg.vector_norm(residuals, dim=0)
    rounding = _ROUNDING * torch.finfo(matrix.dtype).eps * float(norms.max())
    threshold = max(tolerance * scaled.before * scaled.after / (10 * sqrt(2 / pi)), rounding)
    while basis.shape[1] < min(matrix.shape) and float(norms.max()) > threshold:
        column = _orthogonalized(basis, residuals[:, :1])
        basis = torch.cat([basis, column], dim=1)
        residuals = residuals[:, 1:] - column @ (column.mT @ residuals[:, 1:])
        fresh = scaled @ _gaussian(matrix, 1, generator)
        residuals = torch.cat([residuals, fresh - basis @ (basis.mT @ fresh)], dim=1)
        norms = torch.linalg.vector_norm(residuals, dim=0)
    return basis


def randqb_ei(matrix: Tensor, *, error: float, block: int = 16, power_iterations: int = 1, generator: Generator) -> QB:
    """Return a QB factorization that grows by blocks until its relative Frobenius error is at most `error`.

    Yu, Gu & Li (2018), 'Efficient randomized algorithms for the fixed-precision low-rank matrix approximation', SIAM J.
    Matrix Anal. Appl. 39(3), algorithm 2 (randQB_EI). Since b = qᵀA, ‖A − q b‖_F² = ‖A‖_F² − ‖b‖_F², so the error
    requires only the norm of every new block of b, and the residual is never formed.

    The difference is summed in float64, but b carries the rounding of its dtype: errors below √(200 eps), 5e-3 in
    float32, cannot be computed in this way (theorem 3), and the residual is formed instead, by blocks of rows. Errors
    below 10 eps are rounding errors; with a smaller `error` the basis stops growing there.

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        error: Relative Frobenius error to reach.
        block: Vectors added at a time. Large blocks run faster, small ones end closer to the smallest basis.
        power_iterations: Applications of A Aᵀ to the sketch of each block; more of them give a smaller basis.
        generator: Source of the sketches, on the CPU.

    Returns:
        q and b in the dtype and on the device of `matrix`; their size l is between 1 and min(m, n), and a multiple of
        `block` below min(m, n). The error is exact to 1 % or to the rounding of the residual.
    """
    scaled = unit_scaled(matrix)
    limit = min(matrix.shape)
    total = left = scaled.squared_norm()
    trusted = _TRUSTED * torch.finfo(matrix.dtype).eps * total
    goal = max(error, _ROUNDING * torch.finfo(matrix.dtype).eps) ** 2 * total
    q, b = matrix.new_empty(matrix.shape[0], 0), matrix.new_empty(0, matrix.shape[1])
    while not q.shape[1] or (left > goal and q.shape[1] < limit):
        sketch = _gaussian(matrix, min(block, limit - q.shape[1]), generator)
        columns = _next_columns(scaled, q, b, sketch, power_iterations)
        rows = (scaled.mT @ columns).mT
        q, b = torch.cat([q, columns], dim=1), torch.cat([b, rows])
        left = total - float(b.double().square().sum())
        if left < trusted:
            left = _squared_residual(scaled, q, b)
    norm = sqrt(total) / scaled.before / scaled.after
    return QB(q, scaled.restore(b), sqrt(left / total) if total else 0.0, norm)


def rank_for_energy(qb: QB, share: float) -> int:
    """Return the smallest rank r ≥ 1 with Σ_{i≤r} σᵢ(b)² ≥ share · ‖A‖_F².

    Since σᵢ(b) ≤ σᵢ(A), r is never below the rank found from the spectrum of A itself, and the leading r singular
    triplets of q b keep that share of ‖A‖_F².

    Args:
        qb: A factorization whose error is at most √(1 − share).
        share: Above 0 and below 1.

    Raises:
        ValueError: The factorization does not reach that share of ‖A‖_F² at any rank.
    """
    values = torch.linalg.svdvals(qb.b / (qb.norm or 1.0))
    energies = torch.cumsum(values.double().square(), 0)
    # Precision with which the energy outside of b is known.
    slack = _ROUNDING * torch.finfo(qb.b.dtype).eps
    if qb.norm and 1 - qb.error**2 < share - slack:
        raise ValueError(
            f"`share` must be at most 1 - error² = {1 - qb.error**2:.6g} of the factorization, got {share:g}. "
            "Factorize with a smaller `error`."
        )
    return min(int((energies < share).sum()) + 1, len(energies)) if qb.norm else 1


def _gaussian(matrix: Tensor, columns: int, generator: Generator) -> Tensor:
    return gaussian(matrix.shape[1], columns, generator=generator, dtype=matrix.dtype, device=matrix.device)


def _next_columns(scaled: UnitScaled, q: Tensor, b: Tensor, sketch: Tensor, power_iterations: int) -> Tensor:
    """Return an orthonormal sketch of the range of A − q b, orthogonal to q."""
    columns = orthonormalize(scaled @ sketch - q @ (b @ sketch))
    for _ in range(power_iterations):
        columns = orthonormalize(scaled.mT @ columns - b.mT @ (q.mT @ columns))
        columns = orthonormalize(scaled @ columns - q @ (b @ columns))
    return _orthogonalized(q, columns)


def _orthogonalized(basis: Tensor, columns: Tensor) -> Tensor:
    """Return orthonormal columns, orthogonal to a basis, that span the parts of the given columns outside of it."""
    for _ in range(2):  # twice is enough (Giraud, Langou & Rozložník 2005) if they add more than rounding
        columns = orthonormalize(columns - basis @ (basis.mT @ columns))
    return ensure_orthogonal(basis, columns, columns) if basis.shape[1] else columns


def _squared_residual(scaled: UnitScaled, q: Tensor, b: Tensor) -> float:
    """Return ‖A − q b‖_F² of the scaled matrix, formed by blocks of rows."""
    blocks = zip(torch.split(scaled.matrix, _BLOCK_ROWS), torch.split(q, _BLOCK_ROWS), strict=True)
    residuals = (rows * scaled.before * scaled.after - part @ b for rows, part in blocks)
    return sum(float(residual.double().square().sum()) for residual in residuals)

"""Canonical polyadic decomposition of tensors of four modes: the sum of few rank-one tensors near a given one.

A best approximation need not exist: errors may decrease towards an infimum while rank-one tensors diverge and cancel
each other (de Silva & Lim 2008, 'Tensor rank and the ill-posedness of the best low-rank approximation problem'). The
sum of their squared norms is therefore limited, and minimized at the error that is found ('error-preserving
correction', Phan et al. 2020, 'Stable low-rank tensor decomposition for compression of convolutional neural network').
"""

from dataclasses import dataclass
from functools import cached_property
from math import inf

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.alternating import least_norm, least_squares, swept
from lrzip.linalg.blocks.gauss_newton import damped_gauss_newton
from lrzip.linalg.blocks.rank_one_terms import equalized, squared_norms

# Sweeps of alternating least squares from each start, and of corrections.
_SWEEPS = 5
_CORRECTIONS = 6
# Corrections and Gauss-Newton steps alternate; the last correction may increase the error by a smaller share.
_STARTS, _ROUNDS = 3, 3
_SLACK = 5e-3
_LAST_SLACK = 1e-3
# Gauss-Newton steps end when the squared error decreases by less than this share of itself, or after so many steps.
_CONVERGED = 1e-4
_STEPS = 25
# Multiply-accumulates of all Gauss-Newton steps together; large tensors get fewer steps, from one start, in one round.
_WORK = 3e11
# Largest sum of the squared norms of the rank-one tensors, relative to the squared norm of the tensor.
_LIMIT = 30.0


@dataclass(frozen=True)
class OrthogonalTerms:
    """Mutually orthogonal rank-one tensors whose sum is a tensor (m, n, h, w), by descending norm.

    The bases of the last two modes are those of the higher-order SVD (De Lathauwer et al. 2000), and each matrix (m, n)
    of the core is replaced by its SVD. The first `rank` of them miss the tensor by the tail of the norms, which bounds
    the error of the best sum of `rank` rank-one tensors from above.

    Attributes:
        tensor: The tensor, float64.
    """

    tensor: Tensor

    @cached_property
    def _bases(self) -> tuple[Tensor, Tensor]:
        return _basis(self.tensor, 2), _basis(self.tensor, 3)

    @cached_property
    def _matrices(self) -> Tensor:
        core: Tensor = torch.einsum("mnhw,ha,wb->abmn", self.tensor, *self._bases)
        return core.flatten(0, 1)

    @property
    def norms(self) -> Tensor:
        """Norms of all of them, of which there are h · w · min(m, n)."""
        values: Tensor = torch.linalg.svdvals(self._matrices)
        return values.flatten().sort(descending=True).values

    def leading(self, rank: int) -> list[Tensor]:
        """Return the factors (m, rank), (n, rank), (h, rank) and (w, rank) of the first ones."""
        u, s, vh = torch.linalg.svd(self._matrices, full_matrices=False)
        norms, order = s.flatten().sort(descending=True, stable=True)
        at, inner = order[:rank] // s.shape[1], order[:rank] % s.shape[1]
        high, wide = self._bases
        size = wide.shape[1]
        return [u[at, :, inner].mT * norms[:rank], vh[at, inner].mT, high[:, at // size], wide[:, at % size]]


def cp(tensor: Tensor, rank: int, *, generator: Generator) -> list[Tensor]:
    """Return the factors (size, rank) of a sum of rank-one tensors with a small error and small norms.

    Alternating least squares and damped Gauss-Newton steps decrease the error from three starts: `OrthogonalTerms`, the
    leading singular vectors of all unfoldings with random columns added, and random columns alone. From the best
    result, corrections that reduce the norms at nearly the same error and Gauss-Newton steps alternate. Large tensors
    only get the first start and few steps. The minimum may be local. The error is never above that of
    `OrthogonalTerms`, and the sum of squared norms of the rank-one tensors never above 30 times the squared norm of the
    tensor.

    Args:
        tensor: X (m, n, h, w), finite, any floating-point dtype; computed in float64.
        rank: Number of rank-one tensors, at most h · w · min(m, n).
        generator: Source of randomness, on the CPU.

    Returns:
        Factors with columns of equal norms in all modes, in float64 on the device of `tensor`.
    """
    x = tensor.double()
    m, n, h, w = x.shape
    first = OrthogonalTerms(x).leading(rank)
    energy = float(x.square().sum())
    missed = energy - float(squared_norms(first).sum())
    if rank >= h * w * min(m, n) or missed <= torch.finfo(x.dtype).eps * energy:
        return equalized(first)
    starts, rounds, steps = _effort(x, rank)
    others = (_padded(x, rank, generator), _random(x, rank, generator)) if starts > 1 else ()
    fits = [(first, missed), *(_fitted(x, start, steps) for start in (first, *others))]
    found, error = min(fits, key=lambda fit: fit[1])
    for _ in range(rounds):
        corrected = error_preserving(x, found, _allowed(error, energy, _SLACK))
        found, error = min((found, error), _descended(x, corrected, steps), key=lambda fit: fit[1])
    allowed = _allowed(error, energy, _LAST_SLACK)
    return equalized(error_preserving(x, found, allowed) if allowed <= missed else first)


def error_preserving(tensor: Tensor, factors: list[Tensor], allowed: float) -> list[Tensor]:
    """Return factors with a smaller sum of squared norms of the rank-one tensors (Phan et al. 2020).

    Args:
        tensor: The tensor, float64.
        factors: Factors with an error that is allowed.
        allowed: Largest squared error.
    """
    update = least_norm(float(tensor.square().sum()), allowed)
    for _ in range(_CORRECTIONS):
        factors, _ = swept(tensor, factors, update)
    return factors


def _allowed(error: float, energy: float, slack: float) -> float:
    """Return a squared error that is larger by a share of itself, or of the energy that is kept if that is less."""
    return error + 2 * slack * min(error, energy - error)


def _effort(tensor: Tensor, rank: int) -> tuple[int, int, int]:
    """Return the numbers of starts, of rounds, and of Gauss-Newton steps for each of both."""
    cost = 4 * rank * tensor.numel() + 80 * rank**2 * sum(tensor.shape)
    affordable = int(_WORK / cost)
    if affordable >= _STEPS * (_STARTS + _ROUNDS):
        return _STARTS, _ROUNDS, _STEPS
    return 1, 1, min(max(affordable // 2, 1), _STEPS)


def _fitted(tensor: Tensor, start: list[Tensor], steps: int) -> tuple[list[Tensor], float]:
    """Return factors and their squared error, which is infinite if their norms are above the limit."""
    factors = start
    for _ in range(_SWEEPS):
        factors, _ = swept(tensor, factors, least_squares)
    return _descended(tensor, factors, steps)


def _descended(tensor: Tensor, factors: list[Tensor], steps: int) -> tuple[list[Tensor], float]:
    limit = _LIMIT * float(tensor.square().sum())
    found, error = damped_gauss_newton(tensor, factors, steps=steps, converged=_CONVERGED, limit=limit)
    return found, error if float(squared_norms(found).sum()) <= limit else inf


def _padded(tensor: Tensor, rank: int, generator: Generator) -> list[Tensor]:
    """Return the leading left singular vectors of all unfoldings, with standard normal columns where there are more."""
    bases = [_basis(tensor, mode)[:, :rank] for mode in range(tensor.dim())]
    added = _random(tensor, rank, generator)
    return [torch.cat([basis, more[:, basis.shape[1] :]], 1) for basis, more in zip(bases, added, strict=True)]


def _random(tensor: Tensor, rank: int, generator: Generator) -> list[Tensor]:
    """Return standard normal factors."""
    drawn = (torch.randn(size, rank, dtype=tensor.dtype, generator=generator) for size in tensor.shape)
    return [factor.to(tensor.device) for factor in drawn]


def _basis(tensor: Tensor, mode: int) -> Tensor:
    """Return the left singular vectors of the unfolding along a mode."""
    unfolding = tensor.movedim(mode, 0).flatten(1)
    vectors: Tensor = torch.linalg.eigh(unfolding @ unfolding.mT).eigenvectors
    return vectors.flip(1)

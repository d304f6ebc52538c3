"""The singular values of one unfolding, and the quantities derived from them."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lrzip.linalg.blocks.subspace import Subspace

# Sums of squares in float64 have a relative error near 1e-14; an energy that is met exactly must count as met. So must
# one that only rounding errors of the values miss, which are largest for float32 (√1e-12 σ₁).
_SUM_SLACK = 1e-12
# The same, relative to the energy that may be left: where nothing may be left, a sum of nothing has no error.
_SHARE_SLACK = 1e-6


@dataclass(frozen=True)
class Spectrum:
    """Singular values of an (m, n) matrix.

    Attributes:
        values: (min(m, n),) float64 on the CPU, descending, non-negative.
        shape: (m, n).
        eps: Relative precision of the values: that of the dtype they were computed in.
        slack: Bound on the error of a sum of squares, per value in the sum.
        peaks: (min(m, n),) largest i-th singular values over the blocks of a block-diagonal matrix, whose i-th squares
            `values` adds up, or other operator norms of errors of ranks 0, 1, …; None if they are the values.
    """

    values: Tensor
    shape: tuple[int, int]
    eps: float
    slack: float = 0.0
    peaks: Tensor | None = None

    @classmethod
    def of(cls, subspace: Subspace) -> "Spectrum":
        """Return the spectrum of a subspace that comes with all singular values."""
        eps = torch.finfo(subspace.vectors.dtype).eps
        return cls(subspace.squares.sqrt(), subspace.shape, eps, subspace.slack)

    @classmethod
    def of_blocks(cls, values: Tensor, shape: tuple[int, int], eps: float) -> "Spectrum":
        """Return the spectrum of a block-diagonal matrix of which each block is approximated at the same rank.

        Args:
            values: Singular values of all blocks, (blocks, min(m, n)).
            shape: (m, n) of a block.
            eps: Relative precision of the values.
        """
        if len(values) == 1:
            return cls(values[0], shape, eps)
        return cls(values.square().sum(0).sqrt(), shape, eps, peaks=values.amax(0))

    @cached_property
    def _energies(self) -> Tensor:
        return torch.cumsum(self.values.square(), 0)

    @cached_property
    def squared_tails(self) -> Tensor:
        """Squared Frobenius errors of the best approximations of ranks 1 to min(m, n): Σ_{i>r} σᵢ²."""
        from_smallest = self.values.square().flip(0).cumsum(0).flip(0)  # from the smallest up, so that none is lost
        return torch.cat([from_smallest[1:], from_smallest.new_zeros(1)])

    @property
    def operator_norms(self) -> Tensor:
        """Operator norms of the errors of the best approximations of ranks 0 to min(m, n) - 1."""
        return self.values if self.peaks is None else self.peaks

    @property
    def total(self) -> float:
        """Squared Frobenius norm: the sum of all squared singular values."""
        return float(self._energies[-1])

    def energy(self, rank: int) -> float:
        """Return the share of the leading `rank` values in the squared Frobenius norm; 1 for a zero matrix."""
        if self.total == 0:
            return 1.0
        return float(self._energies[rank - 1]) / self.total if rank else 0.0

    def tail(self, rank: int) -> float:
        """Return the Frobenius error of the best approximation of a given rank (Eckart & Young 1936)."""
        return float(self.values[rank:].square().sum().sqrt())

    def rank_for_energy(self, energy: float) -> int:
        """Return the smallest rank r ≥ 1 with Σ_{i≤r} σᵢ² ≥ energy · Σ σᵢ².

        An energy of 1 keeps all values but those that rounding alone makes, as their sums cannot tell them from 0.
        """
        noise = (max(self.shape) * self.eps) ** 2
        allowed = 1 - energy + min(_SUM_SLACK, max(_SHARE_SLACK * (1 - energy), noise))
        return 1 + int((self.squared_tails[:-1] > allowed * self.total).sum())

    def settles(self, energy: float) -> bool:
        """Return whether `rank_for_energy` is the same for all values within their error bound."""
        rank = self.rank_for_energy(energy)
        wanted, error = energy * self.total, rank * self.slack
        reached = float(self._energies[rank - 1]) - error >= wanted
        return not error or (reached and (rank == 1 or float(self._energies[rank - 2]) + error < wanted))

    @property
    def numerical_rank(self) -> int:
        """Number of singular values above σ₁ · max(m, n) · eps, as in `numpy.linalg.matrix_rank`; others count as 0."""
        return int((self.values > self.values[0] * max(self.shape) * self.eps).sum())

    @property
    def condition_number(self) -> float | None:
        """σ₁ / σ_min; None if the matrix has less than full numerical rank."""
        return float(self.values[0] / self.values[-1]) if self.numerical_rank == len(self.values) else None

    @property
    def effective_rank(self) -> float | None:
        """Exponential of the entropy of σ / Σσ (Roy & Vetterli 2007, definition 1); None for a zero matrix."""
        if self.total == 0:
            return None
        shares = self.values / self.values.sum()
        return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))

    @property
    def stable_rank(self) -> float | None:
        """‖W‖_F² / ‖W‖₂²; None for a zero matrix."""
        return self.total / self.spectral_norm**2 if self.total else None

    @property
    def spectral_norm(self) -> float:
        """The largest singular value; of a block-diagonal matrix, that of any block."""
        return float(self.operator_norms[0])

    @property
    def frobenius_norm(self) -> float:
        """Square root of the sum of the squared singular values."""
        return math.sqrt(self.total)

    @property
    def decay_rate(self) -> float | None:
        """Mean difference of consecutive log σ within the numerical rank; None if that is below 2."""
        rank = self.numerical_rank
        if rank < 2:
            return None
        return math.log(float(self.values[rank - 1] / self.values[0])) / (rank - 1)

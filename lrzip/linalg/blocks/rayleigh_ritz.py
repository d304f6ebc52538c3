"""A Rayleigh–Ritz step in float64, with a bound on the energy that the leading Ritz vectors miss."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.certificate import ritz_gap
from lrzip.linalg.blocks.gram import product, rounding
from lrzip.linalg.blocks.lanczos import rest_norm

# Rows that are converted to float64 at a time.
_ROWS = 1024


@dataclass(frozen=True)
class RayleighRitz:
    """Leading Ritz pairs of AᵀA in a subspace.

    Attributes:
        squares: (rank,) Ritz values, descending.
        rotation: (count, rank), coefficients of the Ritz vectors in the basis.
        images: AᵀA Q (n, count).
        energy: ‖A‖_F².
        slack: Bound, per vector, on the energy that the Ritz vectors miss compared with the best ones. It holds except
            with a probability of at most 1e-6 over the start vectors that search the complement of the subspace.
    """

    squares: Tensor
    rotation: Tensor
    images: Tensor
    energy: float
    slack: float

    @property
    def least(self) -> float:
        """Lower bound on the squared error of the best approximation of this rank; may be negative."""
        return self.energy - float(self.squares.sum()) - len(self.squares) * self.slack


def rayleigh_ritz(columns: Tensor, basis: Tensor, rank: int, generator: Generator) -> RayleighRitz:
    """Return the leading Ritz pairs of AᵀA.

    Args:
        columns: A (m, n), m ≥ n, in the dtype to compute bounds in; its squares must neither overflow nor underflow.
        basis: Q (n, count), orthonormal, float64.
        rank: At most count.
        generator: Source of the start vectors in the complement, on the CPU.
    """
    projected, images, energy = _pass(columns, basis)
    root = torch.linalg.qr(images - basis @ projected, mode="r").R

    def apply(x: Tensor) -> Tensor:
        return product(columns.mT, product(columns, x))

    rest = rest_norm(apply, basis.to(columns.dtype), generator).upper
    missed = ritz_gap(projected, root, rest, rank, size=len(basis))
    values, rotation = torch.linalg.eigh(projected)
    squares = values[-rank:].flip(0).clamp(min=0)
    slack = missed / rank + 2 * rounding(squares, torch.float64)
    return RayleighRitz(squares, rotation[:, -rank:].flip(1), images, energy, slack)


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

"""Whitening: factors that are nearest in what they do to given inputs, rather than nearest as matrices.

‖(W − W′)X‖_F² = ‖(W − W′)S‖_F² with S the symmetric root of XXᵀ, so the best W′ of some rank is the truncated SVD of
WS with S undone. S comes from an eigendecomposition, with a floor: inputs that never leave a subspace are no obstacle,
as they are for a Cholesky factorization.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
"""Share of the mean second moment that is added in all directions, so that those without inputs count a little too."""


@dataclass(frozen=True)
class Whitening:
    """The symmetric root of a second moment, and its inverse.

    Attributes:
        root: S, (n, n), or its diagonal (n,); float64.
        inverse: S⁻¹ in the same form.
    """

    root: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, moment: Tensor, damping: float = DAMPING) -> "Whitening":
        """Return the root of a second moment with the same added in all directions.

        Args:
            moment: Positive semidefinite (n, n), or the diagonal (n,) of a diagonal one.
            damping: What is added, as a share of the mean of the diagonal. Positive; inputs that are all zero count
                as white.
        """
        exact = moment.double()
        scale = float((exact if exact.dim() == 1 else exact.diagonal()).mean()) or 1.0
        if exact.dim() == 1:
            root = (exact + damping * scale).sqrt()
            return cls(root, 1 / root)
        values, vectors = torch.linalg.eigh(exact)
        roots = (values.clamp(min=0) + damping * scale).sqrt()
        return cls((vectors * roots) @ vectors.mT, (vectors / roots) @ vectors.mT)

    def apply(self, matrix: Tensor) -> Tensor:
        """Return A S in the dtype of A (m, n), computed in float64."""
        return _times(matrix, self.root)

    def undo(self, matrix: Tensor) -> Tensor:
        """Return A S⁻¹ in the dtype of A (m, n), computed in float64."""
        return _times(matrix, self.inverse)


def regress(cross: Tensor, moment: Tensor, prior: Tensor, damping: float = DAMPING) -> Tensor:
    """Return the matrix with the least E‖t − Wx‖² + λ‖W − prior‖², λ being the damping times the mean of E[xᵢ²].

    Args:
        cross: E[t xᵀ], (m, n) float64.
        moment: E[x xᵀ], (n, n) float64.
        prior: (m, n).
        damping: Positive.

    Returns:
        (m, n) float64.
    """
    added = damping * (float(moment.diagonal().mean()) or 1.0)
    damped = moment + added * torch.eye(len(moment), dtype=moment.dtype)
    solution: Tensor = torch.linalg.solve(damped, (cross + added * prior.double()).mT).mT
    return solution


def _times(matrix: Tensor, square: Tensor) -> Tensor:
    exact, square = matrix.double(), square.to(matrix.device)
    product = exact * square if square.dim() == 1 else exact @ square
    return product.to(matrix.dtype)

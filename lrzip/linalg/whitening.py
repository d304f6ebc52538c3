"""Whitening by a second moment, which reduces weighted low-rank approximation to the unweighted problem.

‖(W − W′)X‖_F² = ‖(W − W′)S‖_F² with S the symmetric root of XXᵀ, so the optimal W′ of a given rank is the truncated SVD
of WS, multiplied by S⁻¹. S is computed by an eigendecomposition with damped eigenvalues; unlike a Cholesky
factorization, it exists for inputs that span only a subspace.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
"""Share of the mean second moment that is added in all directions, so that directions without inputs have a weight."""


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
        """Return the root of a damped second moment.

        Args:
            moment: Positive semidefinite (n, n), or the diagonal (n,) of a diagonal one. A zero moment yields a
                multiple of the identity.
            damping: Positive number to add to all eigenvalues, as a share of the mean of the diagonal.
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
    """Return the matrix W that minimizes E‖t − Wx‖² + λ‖W − prior‖², with λ = damping · mean of E[xᵢ²].

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

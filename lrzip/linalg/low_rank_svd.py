"""Truncated SVD of a product of two thin matrices, without forming the product."""

import torch
from torch import Tensor

from lrzip.linalg.solver import TruncatedSVD


def product_values(left: Tensor, right: Tensor) -> Tensor:
    """Return the leading min(m, k, n) singular values of L R; all others are zero.

    Args:
        left: L (m, k).
        right: R (k, n).

    Returns:
        float64, descending.
    """
    values: Tensor = torch.linalg.svdvals(_core(left, right)[1])
    return values


def product_svd(left: Tensor, right: Tensor, rank: int) -> TruncatedSVD:
    """Return the leading `rank` singular triplets of L R, in float64.

    With L = Q R₁ and Rᵀ = P R₂, they follow from the SVD of the small matrix R₁ R₂ᵀ.
    """
    q, core, p = _core(left, right)
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    return TruncatedSVD(q @ u[:, :rank], s[:rank], vh[:rank] @ p.mT, "product", 0.0)


def product_error(left: Tensor, right: Tensor, other_left: Tensor, other_right: Tensor) -> float:
    """Return ‖L R − L′ R′‖_F / ‖L R‖_F; for a zero product, ‖L′ R′‖_F.

    The difference is itself a product: [L, −L′] [R; R′].
    """
    norm = float(torch.linalg.vector_norm(_core(left, right)[1]))
    both = torch.cat([left.double(), -other_left.double()], 1), torch.cat([right.double(), other_right.double()])
    missed = float(torch.linalg.vector_norm(_core(*both)[1]))
    return missed / norm if norm else missed


def _core(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, C and P with orthonormal columns in Q and P, such that L R = Q C Pᵀ."""
    (q, first), (p, second) = torch.linalg.qr(left.double()), torch.linalg.qr(right.double().mT)
    return q, first @ second.mT, p

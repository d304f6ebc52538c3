"""Tucker-2 decomposition of tensors (m, n, p): the first two modes get a low rank, the third is kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrzip.linalg.blocks.gram import gram

# Sweeps stop when the squared error decreases by less than this share of itself.
_CONVERGED = 1e-4
_SWEEPS = 50
# Balancing stops when no norm changes by more than this share.
_BALANCED = 1e-6
_BALANCING_STEPS = 200


@dataclass(frozen=True)
class Tucker2:
    """X ≈ core ×₁ outer ×₂ inner: X[:, :, k] ≈ outer core[:, :, k] innerᵀ for each k.

    Attributes:
        outer: (m, r).
        core: (r, s, p).
        inner: (n, s).
    """

    outer: Tensor
    core: Tensor
    inner: Tensor


def tucker2(tensor: Tensor, ranks: tuple[int, int]) -> Tucker2:
    """Return a Tucker-2 decomposition of given ranks, by alternating least squares.

    Higher-order orthogonal iteration (De Lathauwer, De Moor & Vandewalle 2000, 'On the best rank-1 and rank-(R1,…,RN)
    approximation', section 4), starting from the truncated higher-order SVD: each step computes the optimal basis of
    one mode given that of the other, so the error never increases. The squared error is therefore at most the sum of
    the squared tails of both unfoldings, and at least the larger of them. The minimum may be local.

    Args:
        tensor: X (m, n, p), finite, any floating-point dtype; computed in float64.
        ranks: r from 1 to m and s from 1 to n.

    Returns:
        Orthonormal `outer` and `inner`, in float64 on the device of `tensor`. The slices of `core` along its first
        mode are orthogonal with descending norms, and so are those along its second mode.
    """
    r, s = ranks
    x = tensor.double()
    inner = leading_vectors(x.transpose(0, 1).flatten(1), s)
    total = float(x.square().sum())
    captured = 0.0
    for _ in range(_SWEEPS):
        outer = leading_vectors(multiply_second(x, inner).flatten(1), r)
        half = torch.einsum("mnp,mr->rnp", x, outer)
        inner = leading_vectors(half.transpose(0, 1).flatten(1), s)
        core = multiply_second(half, inner)
        before, captured = captured, float(core.square().sum())
        if captured - before <= _CONVERGED * (total - captured):
            break
    return all_orthogonal(Tucker2(outer, core, inner))


def balanced(found: Tucker2) -> Tucker2:
    """Return the same product with equal scales: each column of a basis has the norm of its slice of the core.

    This minimizes the sum of squares of all three factors over all diagonal scalings. It is a convex problem in the
    logarithms of the scales, solved for one mode at a time (as Sinkhorn & Knopp 1967 balance matrices). Zero slices of
    the core stay zero.
    """
    squares = found.core.square().sum(2)
    columns = torch.ones_like(squares[:, 0]), torch.ones_like(squares[0])
    for _ in range(_BALANCING_STEPS):
        outer = (squares / columns[1]).sum(1).sqrt()
        outer = torch.where(outer > 0, outer, 1.0)
        inner = (squares / outer[:, None]).sum(0).sqrt()
        inner = torch.where(inner > 0, inner, 1.0)
        change = max(float((new / old).log().abs().max()) for new, old in zip((outer, inner), columns, strict=True))
        columns = outer, inner
        if change <= _BALANCED:
            break
    left, right = columns[0].sqrt(), columns[1].sqrt()
    core = found.core / left[:, None, None] / right[:, None]
    return Tucker2(found.outer * left, core, found.inner * right)


def all_orthogonal(found: Tucker2) -> Tucker2:
    """Return the same product with a core whose slices along each mode are orthogonal, with descending norms.

    Args:
        found: Decomposition with orthonormal `outer` and `inner`.
    """
    left = leading_vectors(found.core.flatten(1), found.core.shape[0])
    right = leading_vectors(found.core.transpose(0, 1).flatten(1), found.core.shape[1])
    core = torch.einsum("rsp,ra,sb->abp", found.core, left, right)
    return Tucker2(found.outer @ left, core, found.inner @ right)


def leading_vectors(unfolding: Tensor, rank: int) -> Tensor:
    """Return the leading left singular vectors (m, rank) of a matrix (m, k), whose own rank may be lower."""
    vectors: Tensor = torch.linalg.eigh(gram(unfolding.mT, dtype=torch.float64)).eigenvectors
    return vectors.flip(1)[:, :rank]


def multiply_second(x: Tensor, inner: Tensor) -> Tensor:
    """Return X ×₂ Vᵀ (m, s, p) for a tensor X (m, n, p) and a basis V (n, s) of its second mode."""
    return torch.einsum("mnp,ns->msp", x, inner)

"""The Tucker-2 decomposition of tensors (m, n, p): two of the three modes get a low rank, the third stays."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrzip.linalg.gram import gram

# Steps stop when the squared error falls by less than this share of itself.
_CONVERGED = 1e-4
_STEPS = 50
# Scales stop when no norm changes by more than this share.
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
    """Return the Tucker-2 decomposition of some ranks that alternating least squares comes to.

    Higher-order orthogonal iteration (De Lathauwer, De Moor & Vandewalle 2000, 'On the best rank-1 and rank-(R1,…,RN)
    approximation', section 4), from the truncated higher-order SVD: in turn, the basis of one mode is the best for that
    of the other, so that the error never grows. Its square is therefore at most the sum of the squared tails of both
    unfoldings, and at least the larger of them. The minimum may be a local one.

    Args:
        tensor: X (m, n, p), finite, any floating-point dtype; computed in float64.
        ranks: r from 1 to m and s from 1 to n.

    Returns:
        Orthonormal `outer` and `inner`, in float64 on the device of `tensor`; the rows and the columns of `core` are
        orthogonal, with norms that fall.
    """
    r, s = ranks
    x = tensor.double()
    inner = _leading(x.transpose(0, 1).flatten(1), s)
    total = float(x.square().sum())
    captured = 0.0
    for _ in range(_STEPS):
        outer = _leading(_project(x, inner).flatten(1), r)
        half = torch.einsum("mnp,mr->rnp", x, outer)
        inner = _leading(half.transpose(0, 1).flatten(1), s)
        core = _project(half, inner)
        before, captured = captured, float(core.square().sum())
        if captured - before <= _CONVERGED * (total - captured):
            break
    return _rotated(Tucker2(outer, core, inner))


def balanced(found: Tucker2) -> Tucker2:
    """Return the same product with scales spread evenly: each column of a basis is as long as its slice of the core.

    Of all diagonal scalings that has the least sum of squares. It is a convex problem in the logarithms of the scales,
    solved one mode at a time (as Sinkhorn & Knopp 1967 balance matrices). Slices of the core that are zero stay so.
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


def _leading(unfolding: Tensor, rank: int) -> Tensor:
    """Return the leading left singular vectors, also beyond the rank of the unfolding."""
    vectors: Tensor = torch.linalg.eigh(gram(unfolding.mT, dtype=torch.float64)).eigenvectors
    return vectors.flip(1)[:, :rank]


def _project(x: Tensor, inner: Tensor) -> Tensor:
    return torch.einsum("mnp,ns->msp", x, inner)


def _rotated(found: Tucker2) -> Tucker2:
    """Return the same product with a core whose slices along each mode are orthogonal, by falling norm."""
    left = _leading(found.core.flatten(1), found.core.shape[0])
    right = _leading(found.core.transpose(0, 1).flatten(1), found.core.shape[1])
    core = torch.einsum("rsp,ra,sb->abp", found.core, left, right)
    return Tucker2(found.outer @ left, core, found.inner @ right)

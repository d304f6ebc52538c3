"""The Tucker-2 decomposition of tensors (m, n, p): two of the three modes get a low rank, the third stays.

It is the nearest to a tensor, or to what that makes of inputs x (n, p) whose second moments are known.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrzip.linalg.blocks.gram import gram
from lrzip.linalg.whitening import Whitening

# Steps stop when the squared error falls by less than this share of itself.
_CONVERGED = 1e-4
_STEPS = 50
# With inputs they cost more and gain little after the first few; each solves for a basis by some conjugate gradients.
_STEPS_WITHIN = 8
_GRADIENTS = 10
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


def tucker2_within(tensor: Tensor, second: Tensor, ranks: tuple[int, int]) -> Tucker2:
    """Return the Tucker-2 decomposition that comes nearest to a tensor on given inputs, as far as steps lead there.

    Alternating least squares for E‖(X − X′)x‖² = tr (X − X′) M (X − X′)ᵀ of the unfolding along the first mode. For a
    basis of the second mode, the rest is a regression of reduced rank, with a closed form (Izenman 1975, 'Reduced-rank
    regression for the multivariate linear model', section 2). For the rest, that basis solves a linear least-squares
    problem, to which conjugate gradients come nearer with every step. So the error never grows. It starts where inputs
    of different places of the third mode are taken for uncorrelated and alike.

    Args:
        tensor: X (m, n, p), finite, any floating-point dtype; computed in float64.
        second: M = E[x xᵀ], (n · p, n · p) float64, positive definite.
        ranks: r from 1 to m and s from 1 to n.

    Returns:
        Orthonormal `outer` and `inner`, in float64 on the device of `second`.
    """
    r, s = ranks
    m, n, p = tensor.shape
    x = tensor.to(second).flatten(1)
    seen = x @ second
    total = float((seen * x).sum())
    channels = Whitening.of(channel_moment(second, n))
    inner = channels.undo(_leading(channels.apply(x.reshape(m, n, p).mT).mT.transpose(0, 1).flatten(1), s).mT).mT
    captured = 0.0
    for _ in range(_STEPS_WITHIN):
        inner = torch.linalg.qr(inner).Q
        outer, core, gained = _regressed(seen, second, inner, r)
        if gained - captured <= _CONVERGED * (total - gained):
            break
        captured = gained
        inner = _refined(inner, core, outer.mT @ seen, second)
    inner, mixed = torch.linalg.qr(inner)
    return _rotated(Tucker2(outer, torch.einsum("rsp,ts->rtp", core, mixed), inner))


def channel_moment(second: Tensor, channels: int) -> Tensor:
    """Return the second moment of channels (n, n), summed over places, from that of all inputs (n · p, n · p)."""
    parts = second.reshape(channels, -1, channels, second.shape[0] // channels)
    summed: Tensor = parts.diagonal(dim1=1, dim2=3).sum(-1)
    return summed


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


def _regressed(seen: Tensor, second: Tensor, inner: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the best basis of the first mode and core for one of the second, and tr X′MX′ᵀ.

    Args:
        seen: X M, (m, n · p).
        second: M.
        inner: (n, s), orthonormal.
        rank: Of the first mode.
    """
    n, s = inner.shape
    m, p = len(seen), len(second) // n
    projected = _project(second.reshape(-1, n, p), inner).flatten(1)  # M (V ⊗ I)
    moment = _project(projected.mT.reshape(s * p, n, p), inner).flatten(1)  # of what the basis makes of inputs
    lower = torch.linalg.cholesky((moment + moment.mT) / 2)
    cross = _project(seen.reshape(m, n, p), inner).flatten(1)
    whitened = torch.linalg.solve_triangular(lower, cross.mT, upper=False).mT
    outer = _leading(whitened, rank)
    kept = outer.mT @ whitened
    core = torch.linalg.solve_triangular(lower.mT, kept.mT, upper=True).mT
    return outer, core.reshape(rank, s, p), float(kept.square().sum())


def _refined(inner: Tensor, core: Tensor, goal: Tensor, second: Tensor) -> Tensor:
    """Return a basis V (n, s) of the second mode that makes ‖(UᵀX − core ×₂ V)x‖² smaller, by conjugate gradients.

    Args:
        inner: To begin with.
        core: (r, s, p).
        goal: UᵀXM, (r, n · p).
        second: M.
    """

    def gradient(seen: Tensor) -> Tensor:
        return torch.einsum("rnp,rsp->ns", seen.reshape(len(core), -1, core.shape[2]), core)

    def apply(basis: Tensor) -> Tensor:
        return gradient(torch.einsum("rsp,ns->rnp", core, basis).flatten(1) @ second)

    found = inner
    residual = gradient(goal) - apply(inner)
    direction, size = residual, float(residual.square().sum())
    for _ in range(_GRADIENTS):
        image = apply(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        found, residual = found + size / curvature * direction, residual - size / curvature * image
        before, size = size, float(residual.square().sum())
        direction = residual + size / before * direction
    return found


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

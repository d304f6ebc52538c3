"""Tucker-2 decomposition that minimizes the error of outputs, for inputs with known second moments."""

import torch
from torch import Tensor

from lrzip.linalg.tucker import Tucker2, all_orthogonal, leading_vectors, multiply_second
from lrzip.linalg.whitening import Whitening

# Sweeps stop when the squared error decreases by less than this share of itself. They cost more than those of the
# unweighted decomposition, and gain little after the first few.
_CONVERGED = 1e-4
_SWEEPS = 8
# Steps of conjugate gradients for the basis of the second mode, in each sweep.
_GRADIENT_STEPS = 10


def weighted_tucker2(tensor: Tensor, second: Tensor, ranks: tuple[int, int]) -> Tucker2:
    """Return a Tucker-2 decomposition X′ that minimizes E‖(X − X′)x‖², approximately.

    Alternating least squares for E‖(X − X′)x‖² = tr (X − X′) M (X − X′)ᵀ of the unfolding along the first mode. For a
    given basis of the second mode, outer basis and core are a reduced-rank regression with a closed form (Izenman 1975,
    'Reduced-rank regression for the multivariate linear model', section 2). For given outer basis and core, the basis
    of the second mode is a linear least-squares problem, for which conjugate gradients decrease the error in every
    step. The error therefore never increases. The start treats inputs at different positions of the third mode as
    uncorrelated and identically distributed.

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
    weighted = x @ second
    total = float((weighted * x).sum())
    channels = Whitening.of(channel_moment(second, n))
    inner = channels.undo(leading_vectors(channels.apply(x.reshape(m, n, p).mT).mT.transpose(0, 1).flatten(1), s).mT).mT
    captured = 0.0
    for _ in range(_SWEEPS):
        inner = torch.linalg.qr(inner).Q
        outer, core, gained = _regressed(weighted, second, inner, r)
        if gained - captured <= _CONVERGED * (total - gained):
            break
        captured = gained
        inner = _refined(inner, core, outer.mT @ weighted, second)
    inner, mixed = torch.linalg.qr(inner)
    return all_orthogonal(Tucker2(outer, torch.einsum("rsp,ts->rtp", core, mixed), inner))


def channel_moment(second: Tensor, channels: int) -> Tensor:
    """Return the second moment of channels (n, n), summed over kernel positions.

    Args:
        second: Second moment of all inputs (n · p, n · p), channels first.
        channels: n.
    """
    parts = second.reshape(channels, -1, channels, second.shape[0] // channels)
    summed: Tensor = parts.diagonal(dim1=1, dim2=3).sum(-1)
    return summed


def _regressed(weighted: Tensor, second: Tensor, inner: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the optimal outer basis (m, rank) and core for a given inner basis, and the energy tr X′MX′ᵀ of outputs.

    Args:
        weighted: X M, (m, n · p).
        second: M.
        inner: V (n, s), orthonormal.
        rank: Rank of the first mode.
    """
    n, s = inner.shape
    m, p = len(weighted), len(second) // n
    projected = multiply_second(second.reshape(-1, n, p), inner).flatten(1)  # M (V ⊗ I)
    moment = multiply_second(projected.mT.reshape(s * p, n, p), inner).flatten(1)  # (V ⊗ I)ᵀ M (V ⊗ I)
    lower = torch.linalg.cholesky((moment + moment.mT) / 2)
    cross = multiply_second(weighted.reshape(m, n, p), inner).flatten(1)
    whitened = torch.linalg.solve_triangular(lower, cross.mT, upper=False).mT
    outer = leading_vectors(whitened, rank)
    kept = outer.mT @ whitened
    core = torch.linalg.solve_triangular(lower.mT, kept.mT, upper=True).mT
    return outer, core.reshape(rank, s, p), float(kept.square().sum())


def _refined(inner: Tensor, core: Tensor, goal: Tensor, second: Tensor) -> Tensor:
    """Return a basis V (n, s) of the second mode with a smaller E‖(UᵀX − core ×₂ V)x‖², by conjugate gradients.

    Args:
        inner: Initial V (n, s).
        core: (r, s, p).
        goal: UᵀXM, (r, n · p).
        second: M.
    """

    def gradient(weighted: Tensor) -> Tensor:
        return torch.einsum("rnp,rsp->ns", weighted.reshape(len(core), -1, core.shape[2]), core)

    def apply(basis: Tensor) -> Tensor:
        return gradient(torch.einsum("rsp,ns->rnp", core, basis).flatten(1) @ second)

    found = inner
    residual = gradient(goal) - apply(inner)
    direction, size = residual, float(residual.square().sum())
    for _ in range(_GRADIENT_STEPS):
        image = apply(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        found, residual = found + size / curvature * direction, residual - size / curvature * image
        before, size = size, float(residual.square().sum())
        direction = residual + size / before * direction
    return found

"""Fit the factors of any structure to the outputs of a layer, for inputs with known second moments."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lrzip.core.merge import merge
from lrzip.core.moments import Moments
from lrzip.core.structure import Stage, Structure, tensor_shapes

# Sweeps stop when the squared error decreases by less than this share of itself.
_CONVERGED = 1e-3
_SWEEPS = 8
# Steps of conjugate gradients for each factor in each sweep.
_GRADIENT_STEPS = 10


def output_energy(weight: Tensor, second: Tensor) -> float:
    """Return E‖Wx‖².

    Args:
        weight: W, with outputs first.
        second: E[x xᵀ] of the unfolded inputs, float64.
    """
    matrix = weight.flatten(1).to(second)
    return max(float(((matrix @ second) * matrix).sum()), 0.0)


def damped_moment(moments: Moments) -> Tensor:
    """Return the second moment of the inputs plus a share of its mean times the identity, positive definite."""
    (second,) = moments.second
    added = moments.damping * (float(second.diagonal().mean()) or 1.0)
    damped: Tensor = second + added * torch.eye(len(second), dtype=second.dtype)
    if not torch.linalg.cholesky_ex(damped).info:
        return damped
    # Where the mean of the inputs is large compared to their spread, sums in float32 leave negative eigenvalues.
    values, vectors = torch.linalg.eigh(second)
    positive: Tensor = (vectors * (values.clamp(min=0) + added)) @ vectors.mT
    return positive


def fit_outputs(
    structure: Structure,
    weights: Sequence[Tensor],
    target: Tensor,
    replaced: Stage,
    second: Tensor,
    *,
    free: Sequence[int] | None = None,
) -> list[Tensor]:
    """Return the weights of a structure after alternating least squares for E‖(W − W′)x‖².

    The dense product W′ is linear in each weight. A sweep improves one weight after the other by conjugate gradients,
    of which no step increases the error. The minimum may be local.

    Args:
        structure: A structure of stages.
        weights: Weights to start from, in the order of `lrzip.core.structure.leaves`, of any shape.
        target: W, with outputs first.
        replaced: The layer as a single stage.
        second: E[x xᵀ] of the unfolded inputs, float64, positive definite.
        free: Indices of the weights that change; all by default.

    Returns:
        The weights in float64 on the CPU.
    """
    shapes = zip(weights, tensor_shapes(structure), strict=True)
    found = [weight.double().cpu().reshape(shape) for weight, shape in shapes]
    target = target.double().cpu()
    missed = output_energy(target - merge(structure, found, replaced), second)
    for _ in range(_SWEEPS):
        for index in range(len(found)) if free is None else free:
            found[index] = _improved(_product_of(structure, found, index, replaced), found[index], target, second)
        before, missed = missed, output_energy(target - merge(structure, found, replaced), second)
        if before - missed <= _CONVERGED * missed:
            break
    return found


def _product_of(
    structure: Structure, weights: Sequence[Tensor], index: int, replaced: Stage
) -> Callable[[Tensor], Tensor]:
    """Return the dense product as a function of one weight, in which it is linear."""

    def product(weight: Tensor) -> Tensor:
        return merge(structure, [*weights[:index], weight, *weights[index + 1 :]], replaced)

    return product


def _improved(product: Callable[[Tensor], Tensor], start: Tensor, target: Tensor, second: Tensor) -> Tensor:
    """Return a weight after some steps of conjugate gradients for the normal equations."""
    weight = start.clone()
    with torch.enable_grad():  # the caller may compute without gradients
        variable = start.clone().requires_grad_()
        image = product(variable)

    def gradient(residual: Tensor) -> Tensor:
        metric = (residual.flatten(1) @ second).reshape(residual.shape)
        return torch.autograd.grad(image, variable, metric, retain_graph=True)[0]

    residual = target - image.detach()
    direction = steepest = gradient(residual)
    length = float(steepest.square().sum())
    for _ in range(_GRADIENT_STEPS):
        change = product(direction)
        curvature = output_energy(change, second)
        if not curvature > 0:
            break
        step = length / curvature
        weight, residual = weight + step * direction, residual - step * change
        steepest, before = gradient(residual), length
        length = float(steepest.square().sum())
        direction = steepest + length / before * direction
    return weight

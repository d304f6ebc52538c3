"""Damped Gauss-Newton steps for the factors of sums of rank-one tensors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lrzip.linalg.blocks.rank_one_terms import (
    equalized,
    grams_except,
    products,
    squared_error,
    squared_norms,
)

# The relative residual at which conjugate gradients stop, and their largest number of steps.
_FORCING = 0.1
_GRADIENT_STEPS = 15
# Damping at the start, and its factors after steps that are rejected and accepted.
_DAMPING = 1e-3
_INCREASE = 8
_DECREASE = 4
# Less damping may leave matrices that are not numerically positive definite.
_LEAST_DAMPING = 1e-10


def damped_gauss_newton(
    tensor: Tensor, factors: Sequence[Tensor], *, steps: int, converged: float, limit: float
) -> tuple[list[Tensor], float]:
    """Return factors with a smaller squared error, and that error (Levenberg 1944, Marquardt 1963).

    Args:
        tensor: The tensor (m, n, h, w).
        factors: Factors to start from.
        steps: Largest number of steps.
        converged: Steps stop when the squared error decreases by less than this share of itself.
        limit: Largest sum of the squared norms of the rank-one tensors; steps beyond it are not taken.
    """
    energy = float(tensor.square().sum())
    found, damping = equalized(factors), _DAMPING
    images = products(tensor, found)
    missed = squared_error(energy, images[0], found, 0)
    for _ in range(steps):
        trial = _stepped(found, images, damping)
        trial_images = products(tensor, trial)
        error = squared_error(energy, trial_images[0], trial, 0)
        if not error < missed or float(squared_norms(trial).sum()) > limit:
            damping *= _INCREASE
            continue
        gained = missed - error
        found, images, missed = trial, trial_images, error
        damping = max(damping / _DECREASE, _LEAST_DAMPING)
        if gained <= converged * missed or missed <= torch.finfo(tensor.dtype).eps * energy:
            break
    return found, missed


def _stepped(factors: Sequence[Tensor], images: Sequence[Tensor], damping: float) -> list[Tensor]:
    """Return the factors after a step, with damping relative to the largest mean of a block of the Jacobian's Gram."""
    grams = [grams_except(factors, mode) for mode in range(len(factors))]
    gradient = [factor @ gram - image for factor, gram, image in zip(factors, grams, images, strict=True)]
    scale = max(float(gram.diagonal().mean()) for gram in grams)
    change = _solved(factors, gradient, damping * scale)
    return equalized([factor - part for factor, part in zip(factors, change, strict=True)])


def _solved(factors: Sequence[Tensor], right: Sequence[Tensor], damping: float) -> list[Tensor]:
    """Return x with (JᵀJ + damping · I) x = right for the Jacobian J, by preconditioned conjugate gradients.

    Blocks of JᵀJ follow from products of Gram matrices; J is never formed. The preconditioner is the block diagonal.
    All modes are computed at once, padded with zeros to the same size.
    """
    padded, wanted = pad_sequence(list(factors), batch_first=True), pad_sequence(list(right), batch_first=True)
    modes = range(len(factors))
    unit = damping * torch.eye(padded.shape[2], dtype=padded.dtype, device=padded.device)
    diagonal = torch.stack([grams_except(factors, mode) for mode in modes]) + unit
    # Blocks between two modes; those of a mode with itself are in the diagonal.
    mixed = [torch.stack([grams_except(factors, a, b) * (a != b) for a in modes]) for b in modes]

    def apply(x: Tensor) -> Tensor:
        crossed = sum(
            (block * part.mT for block, part in zip(mixed, padded.mT @ x, strict=True)), torch.zeros_like(unit)
        )
        return x @ diagonal + padded @ crossed

    found = _conjugate_gradients(apply, wanted, torch.linalg.cholesky(diagonal))
    return [part[: len(factor)] for part, factor in zip(found, factors, strict=True)]


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, roots: Tensor) -> Tensor:
    """Return an approximate solution x (modes, size, rank) of apply(x) = right.

    Args:
        apply: A positive definite map.
        right: The right-hand side.
        roots: Cholesky factors (modes, rank, rank) of the preconditioner.
    """
    found, residual = torch.zeros_like(right), right
    direction = prepared = torch.cholesky_solve(right.mT, roots).mT
    length = float((residual * prepared).sum())
    goal = _FORCING**2 * length
    for _ in range(_GRADIENT_STEPS):
        image = apply(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        found, residual = found + length / curvature * direction, residual - length / curvature * image
        prepared = torch.cholesky_solve(residual.mT, roots).mT
        before, length = length, float((residual * prepared).sum())
        if length <= goal:
            break
        direction = prepared + length / before * direction
    return found

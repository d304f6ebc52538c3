"""Sums of rank-one tensors of four modes (m, n, h, w), held as one matrix (size, rank) for each mode."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

MODES = 4


def grams_except(factors: Sequence[Tensor], *modes: int) -> Tensor:
    """Return the element-wise product (rank, rank) of the Gram matrices of all modes but some."""
    return reduce(torch.mul, [factor.mT @ factor for mode, factor in enumerate(factors) if mode not in modes])


def contracted_first(tensor: Tensor, factor: Tensor) -> Tensor:
    """Return the tensor (n, h, w, rank) of inner products along the first mode."""
    return (tensor.flatten(1).mT @ factor).reshape(*tensor.shape[1:], -1)


def contracted_second(tensor: Tensor, factor: Tensor) -> Tensor:
    """Return the tensor (m, h, w, rank) of inner products along the second mode."""
    return contracted_first(tensor.transpose(0, 1), factor)


def product_from(partial: Tensor, factors: Sequence[Tensor], mode: int) -> Tensor:
    """Return the unfolding along a mode times the Khatri-Rao product of all other factors, (size, rank).

    Args:
        partial: The tensor contracted along the first mode, or along the second one for the first.
        factors: The factors.
        mode: The mode.
    """
    rows, high, wide = (factors[at] for at in (1 if mode else 0, 2, 3))
    if mode < 2:
        return torch.einsum("nhwr,hr,wr->nr", partial, high, wide)
    summed = torch.einsum("nhwr,nr->hwr", partial, rows)
    return torch.einsum("hwr,wr->hr", summed, wide) if mode == 2 else torch.einsum("hwr,hr->wr", summed, high)


def products(tensor: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Return, for each mode, the unfolding times the Khatri-Rao product of the other factors."""
    partial = contracted_first(tensor, factors[0])
    others = [product_from(partial, factors, mode) for mode in range(1, MODES)]
    return [product_from(contracted_second(tensor, factors[1]), factors, 0), *others]


def squared_error(energy: float, product: Tensor, factors: Sequence[Tensor], mode: int) -> float:
    """Return the squared error of a sum of rank-one tensors, at least 0.

    Args:
        energy: Sum of squares of the tensor.
        product: The result of `product_from` for a mode.
        factors: The factors.
        mode: That mode.
    """
    factor = factors[mode]
    return max(energy + float(((factor @ grams_except(factors, mode) - 2 * product) * factor).sum()), 0.0)


def squared_norms(factors: Sequence[Tensor]) -> Tensor:
    """Return the squared norm of each rank-one tensor."""
    return reduce(torch.mul, [factor.square().sum(0) for factor in factors])


def scaled_into(factors: Sequence[Tensor], mode: int) -> list[Tensor]:
    """Return the same tensors with unit columns in all modes but one. Zero columns stay zero."""
    norms = [factor.norm(dim=0) for factor in factors]
    units = [factor / torch.where(norm > 0, norm, 1.0) for factor, norm in zip(factors, norms, strict=True)]
    units[mode] = factors[mode] * reduce(torch.mul, [norm for at, norm in enumerate(norms) if at != mode])
    return units


def equalized(factors: Sequence[Tensor]) -> list[Tensor]:
    """Return the same tensors with columns of equal norms in all modes."""
    scales = squared_norms(factors) ** (1 / (2 * MODES))
    units = scaled_into(factors, 0)
    norms = units[0].norm(dim=0)
    units[0] = units[0] / torch.where(norms > 0, norms, 1.0)
    return [unit * scales for unit in units]

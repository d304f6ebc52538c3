"""Alternating updates of the factors of sums of rank-one tensors: least squares, and least norms at a given error."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lrzip.linalg.blocks.rank_one_terms import (
    MODES,
    contracted_first,
    contracted_second,
    grams_except,
    product_from,
    scaled_into,
)

_BISECTIONS = 40

Update = Callable[[Tensor, Tensor], Tensor]
"""Returns a factor from its product with the tensor and from the Gram matrix of the unit columns of the others."""


def swept(tensor: Tensor, factors: Sequence[Tensor], update: Update) -> tuple[list[Tensor], Tensor]:
    """Return the factors after an update of each mode, the first one last, and the product of that one."""
    found = scaled_into(factors, 1)
    partial = contracted_first(tensor, found[0])
    for mode in range(1, MODES):
        found = scaled_into(found, mode)
        found[mode] = update(product_from(partial, found, mode), grams_except(found, mode))
    found = scaled_into(found, 0)
    product = product_from(contracted_second(tensor, found[1]), found, 0)
    found[0] = update(product, grams_except(found, 0))
    return found, product


def least_squares(product: Tensor, gram: Tensor) -> Tensor:
    """Return the factor with the least error."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverses = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    found: Tensor = (product @ vectors * inverses) @ vectors.mT
    return found


def least_norm(energy: float, allowed: float) -> Update:
    """Return the update with the least norm whose squared error is not above the allowed one.

    It is a ridge regression. Its squared error grows with the multiplier, which is the root of a secular equation.

    Args:
        energy: Sum of squares of the tensor.
        allowed: Largest squared error.
    """

    def update(product: Tensor, gram: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp(min=0) + values[-1] * len(values) * torch.finfo(values.dtype).eps
        rotated = product @ vectors
        squares = rotated.square().sum(0)

        def error(multiplier: float) -> float:
            shifted = values + multiplier
            return energy - float((squares * (shifted + multiplier) / shifted.square()).sum())

        low, high = 0.0, float(values[-1])
        while error(high) <= allowed and high < 1e12 * float(values[-1]):
            low, high = high, 4 * high
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if error(middle) <= allowed else (low, middle)
        found: Tensor = (rotated / (values + low)) @ vectors.mT
        return found

    return update

"""Matrices scaled to unit magnitude without copies; squares of float32 leave its range below 1e-19 and above 1e19."""

from dataclasses import dataclass
from math import frexp, ldexp

import torch
from torch import Tensor

from lrzip.linalg.blocks.gram import largest_element

# Rows that are converted to float64 at a time, so that no float64 copy of the matrix is made.
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class UnitScaled:
    """A matrix times a power of two, which is exact, such that its largest magnitude lies in [½, 1).

    Attributes:
        matrix: The unscaled matrix, real and finite, shape (m, n).
        before: Factor by which products scale their right operand.
        after: Factor by which products scale their result. The product of both is the scale; as a single factor it
            could leave the range of float32.
    """

    matrix: Tensor
    before: float
    after: float

    @property
    def mT(self) -> "UnitScaled":  # noqa: N802 (named as in torch)
        """The transpose."""
        return UnitScaled(self.matrix.mT, self.before, self.after)

    def __matmul__(self, columns: Tensor) -> Tensor:
        """Return the product with `columns` (n, l)."""
        return (self.matrix @ (columns * self.before)).mul_(self.after)

    def squared_norm(self) -> float:
        """Return the squared Frobenius norm, summed in float64."""
        blocks = torch.split(self.matrix, _BLOCK_ROWS)
        return sum(float((block.double() * self.before * self.after).square().sum()) for block in blocks)

    def restore(self, values: Tensor) -> Tensor:
        """Convert values that are linear in the scaled matrix to the scale of the original one."""
        return values / self.before / self.after


def unit_scaled(matrix: Tensor) -> UnitScaled:
    """Return a matrix scaled to unit magnitude; a zero matrix is left unchanged.

    Args:
        matrix: Real and finite, shape (m, n), any strides. It is read once and not copied.
    """
    exponent = frexp(largest_element(matrix))[1]
    half = exponent // 2
    return UnitScaled(matrix, ldexp(1.0, -half), ldexp(1.0, half - exponent))

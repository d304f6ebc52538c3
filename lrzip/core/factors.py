"""Factors: the weights of a structure that replaces a layer, and their errors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrzip.core.merge import merge
from lrzip.core.structure import Stage, Structure
from lrzip.linalg.blocks.subnormals import flush_subnormals

# Rows of a product that are compared at a time, so that measuring an error needs no second copy of the matrix.
_ERROR_ROWS = 256


@dataclass(frozen=True)
class Factors:
    """Weights of a structure that approximates a layer.

    Attributes:
        structure: Structure that replaces the layer.
        weights: Tensors of its stages and selections in the order of `lrzip.core.structure.leaves`, in the dtype in
            which they are stored, on the CPU, with subnormal numbers set to 0. The layer's bias belongs to the last
            stage.
        error: Relative Frobenius error of the dense product of the stored tensors.
        method: Name of the algorithm that computed them.
        excess: Upper bound on error / (least error of these ranks) - 1; None if there is none. Errors below 20 eps of
            the dtype computed in count as 0. With moments of the inputs, both errors are those of the outputs for
            damped moments, which the factors minimize.
        output_error: Relative error of the outputs, ‖(W − W′)X‖_F / ‖WX‖_F, if moments of the inputs X are given. With
            centered moments, both are without their means.
    """

    structure: Structure
    weights: tuple[Tensor, ...]
    error: float
    method: str
    excess: float | None = None
    output_error: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(map(flush_subnormals, self.weights)))

    def dense(self, replaced: Stage) -> Tensor:
        """Return the dense product, with the shape of the layer's weight; see `lrzip.core.merge.merge`."""
        return merge(self.structure, self.weights, replaced)


@dataclass(frozen=True)
class GroupFactors:
    """Factors of all layers of a group, usually of a single one.

    Attributes:
        members: Factors of each layer, in the order of the group.
        others: Other tensors of the group that change with them, such as biases, by name.
    """

    members: tuple[Factors, ...]
    others: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Largest relative error of a layer."""
        return max(factors.error for factors in self.members)

    @property
    def method(self) -> str:
        """Names of the algorithms that computed them."""
        return " and ".join(dict.fromkeys(factors.method for factors in self.members))

    @property
    def excess(self) -> float | None:
        """Largest bound on the excess error of a layer; None unless all were checked."""
        bounds = [factors.excess for factors in self.members]
        return max((bound for bound in bounds if bound is not None), default=None) if None not in bounds else None

    @property
    def output_error(self) -> float | None:
        """Largest known relative error of the outputs of a layer; None if none is known."""
        return max((f.output_error for f in self.members if f.output_error is not None), default=None)


def relative_difference(weight: Tensor, other: Tensor) -> float:
    """Return ‖A − B‖_F / ‖A‖_F, or ‖B‖_F where A is zero."""
    missed = float(torch.linalg.vector_norm(weight - other, dtype=torch.float64))
    scale = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
    return missed / scale if scale else missed


def relative_error(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    """Return ‖A − LR‖_F / ‖A‖_F, summed in float64; for a zero matrix, 0 if the product is zero, else 1.

    Args:
        matrix: A (m, n).
        left: L (m, k).
        right: R (k, n).
    """
    inner = right if right.dtype == torch.float64 else right.float()
    squared = scale = 0.0
    for rows, part in zip(torch.split(matrix, _ERROR_ROWS), torch.split(left, _ERROR_ROWS), strict=True):
        outer = part if part.dtype == torch.float64 else part.float()
        dense = rows.to(inner)
        squared += float(torch.linalg.vector_norm(dense - outer @ inner, dtype=torch.float64)) ** 2
        scale += float(torch.linalg.vector_norm(dense, dtype=torch.float64)) ** 2
    return float((squared / scale) ** 0.5) if scale else float(squared > 0)

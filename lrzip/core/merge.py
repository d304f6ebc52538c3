"""The dense product: the weight of the single layer that is equivalent to a structure."""

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from lrzip.core.structure import Chain, Reshape, Select, Stage, Structure, Sum, leaves


def merge(structure: Structure, weights: Sequence[Tensor], replaced: Stage) -> Tensor:
    """Return the dense weight of a structure.

    Args:
        structure: The structure. Along each spatial axis, at most one stage of a chain has a kernel.
        weights: Tensors of its stages and selections, in the order of `leaves`.
        replaced: The layer that the structure replaces.

    Returns:
        A weight with the shape of the layer's own, in float64 if any weight of the structure is, else in float32.
    """
    if sum(1 for _ in leaves(structure)) != len(weights):
        raise ValueError(f"the structure does not have {len(weights)} tensors")
    dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32
    cast = (weight.to(dtype) if weight.is_floating_point() else weight for weight in weights)
    dense = _apply(structure, _Identity(replaced, dtype), cast)
    assert isinstance(dense, Tensor), "a structure has at least one stage"
    return replaced.kind.outputs_first(dense)


class _Identity:
    """The identity as a linear map, whose weight is formed only when it is needed."""

    def __init__(self, replaced: Stage, dtype: torch.dtype) -> None:
        self._inputs = replaced.inputs // replaced.groups
        self._groups, self._spatial, self._dtype = replaced.groups, replaced.kind.spatial, dtype

    def formed(self) -> Tensor:
        """Return the weight (in, in, 1, …)."""
        return torch.eye(self._inputs, dtype=self._dtype)[..., *(None,) * self._spatial]

    def followed_by(self, stage: Stage, weight: Tensor) -> Tensor:
        """Return the weight of a first stage, block-diagonal where it has more groups than the replaced layer."""
        blocks = stage.groups // self._groups
        if blocks == 1:
            return weight
        parts = weight.reshape(self._groups, blocks, -1, *weight.shape[1:])
        spread = parts.new_zeros(self._groups, blocks, parts.shape[2], blocks, *weight.shape[1:])
        for block in range(blocks):
            spread[:, block, :, block] = parts[:, block]
        return spread.flatten(3, 4).flatten(0, 2)


def _apply(structure: Structure, dense: Tensor | _Identity, weights: Iterator[Tensor]) -> Tensor | _Identity:
    """Return a linear map (out, in, *kernel) followed by a structure."""
    if isinstance(structure, Chain):
        return reduce(lambda done, part: _apply(part, done, weights), structure.parts, dense)
    if isinstance(structure, Sum):
        return reduce(torch.add, [_formed(_apply(branch, dense, weights)) for branch in structure.branches])
    if isinstance(structure, Select):
        return _formed(dense)[next(weights).to(torch.int64)]
    if isinstance(structure, Reshape):
        return _rearranged(_formed(dense), structure)
    weight = structure.kind.outputs_first(next(weights))
    if isinstance(dense, _Identity):
        return dense.followed_by(structure, weight)
    return _product(dense, structure, weight)


def _product(dense: Tensor, stage: Stage, weight: Tensor) -> Tensor:
    """Return a linear map followed by a stage: the product over channels at each element of the kernels.

    After a `Reshape`, the stage acts on the last of several axes of features.
    """
    if dense.shape[0] > stage.inputs:
        features = dense.reshape(-1, stage.inputs, *dense.shape[1:])
        return torch.einsum("or...,gri...->goi...", weight, features).flatten(0, 1)
    left, right = (part.reshape(stage.groups, -1, *part.shape[1:]) for part in (weight, dense))
    return torch.einsum("gor...,gri...->goi...", left, right).flatten(0, 1)


def _rearranged(dense: Tensor, reshape: Reshape) -> Tensor:
    columns = dense.mT
    moved = columns.reshape(-1, *reshape.view).permute(0, *(1 + axis for axis in reshape.order))
    return moved.reshape(len(columns), -1).mT


def _formed(dense: Tensor | _Identity) -> Tensor:
    return dense.formed() if isinstance(dense, _Identity) else dense

"""Two linear layers around an element-wise function, with fewer hidden units: those with the largest weights.

The result has no factors. The first weight loses rows, its bias loses elements, and the second weight loses columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from lrzip.core.decisions import Replacement
from lrzip.core.factors import Factors, GroupFactors, relative_difference
from lrzip.core.layers import FACTORIZABLE_DTYPES, Group, Layer, TensorSpec
from lrzip.linalg.svd import Solver


@dataclass(frozen=True)
class Narrow:
    solver: Solver

    def refuse(self, layer: Layer) -> str:
        return f"`{layer.name}` alone: it takes pairs of layers"

    def refuse_group(self, group: Group) -> str | None:
        if len(group.layers) != 2 or not all(_is_linear(layer) for layer in group.layers):
            return "not a pair of linear layers"
        first, second = group.layers
        return None if first.stage.outputs == second.stage.inputs else "their hidden units differ"

    def max_group_ranks(self, group: Group) -> tuple[int, ...]:
        return (group.layers[0].stage.outputs,)

    def replacements(self, group: Group, ranks: tuple[int, ...]) -> tuple[Replacement, ...]:
        first, second = group.layers
        (units,) = ranks
        before = replace(first.stage, shape=first.kind.shape(units, first.stage.inputs))
        after = replace(second.stage, shape=second.kind.shape(second.stage.outputs, units))
        biases = ((first.bias, _shortened(first.bias, units)),) if first.bias else ()
        return Replacement(first, before, biases), Replacement(second, after)

    def factorize_group(
        self,
        group: Group,
        tensors: Mapping[str, Tensor],
        ranks: tuple[int, ...],
        *,
        dtype: torch.dtype,
        generator: Generator,
    ) -> GroupFactors:
        del generator
        (count,) = ranks
        (first, second), replacements = group.layers, self.replacements(group, ranks)
        weight = first.kind.outputs_first(tensors[first.weight.name])  # (hidden, in)
        units = weight.norm(dim=1).argsort(descending=True)[:count].sort().values
        members = []
        for layer, axis, replacement in zip((first, second), (0, 1), replacements, strict=True):
            dense = layer.kind.outputs_first(tensors[layer.weight.name])
            kept = dense.index_select(axis, units)
            error = relative_difference(dense, torch.zeros_like(dense).index_copy(axis, units, kept))
            stored = layer.kind.outputs_first(kept).to(dtype).contiguous()
            members.append(Factors(replacement.structure, (stored,), error, "largest units"))
        biases = {first.bias.name: tensors[first.bias.name][units].to(dtype)} if first.bias else {}
        return GroupFactors(tuple(members), biases)


def _is_linear(layer: Layer) -> bool:
    return layer.kind.name in ("linear", "linear_transposed")


def _shortened(bias: TensorSpec, size: int) -> TensorSpec:
    return TensorSpec(bias.name, (size,), bias.dtype, FACTORIZABLE_DTYPES[bias.dtype] * size)

"""A pair of linear layers around an element-wise function, with fewer hidden units: those with the largest weights."""

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
        kinds = {layer.kind.name for layer in group.layers}
        if len(group.layers) != 2 or not kinds <= {"linear", "linear_transposed"}:
            return "not a pair of linear layers"
        first, second = group.layers
        return None if self._hidden(first) == second.stage.inputs else "their hidden units differ"

    def max_group_ranks(self, group: Group) -> tuple[int, ...]:
        return (self._hidden(group.layers[0]),)

    def replacements(self, group: Group, ranks: tuple[int, ...]) -> tuple[Replacement, ...]:
        first, second = group.layers
        (rank,) = ranks
        narrow = replace(first.stage, shape=first.kind.shape(rank, first.stage.inputs))
        behind = replace(second.stage, shape=second.kind.shape(second.stage.outputs, rank))
        biases = [(first.bias, self._resized(first.bias, rank))] if first.bias else []
        return Replacement(first, narrow, tuple(biases)), Replacement(second, behind)

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
        first = group.layers[0]
        dense = [layer.kind.outputs_first(tensors[layer.weight.name]) for layer in group.layers]
        units = dense[0].norm(dim=1).argsort(descending=True)[: ranks[0]].sort().values
        kept = dense[0][units], dense[1][:, units]
        members = []
        for layer, weight, whole, each in zip(group.layers, kept, dense, self.replacements(group, ranks), strict=True):
            filled = torch.zeros_like(whole)
            filled[(units,) if layer is first else (slice(None), units)] = weight
            stored = layer.kind.outputs_first(weight).to(dtype).contiguous()
            members.append(Factors(each.structure, (stored,), relative_difference(whole, filled), "largest units"))
        others = {first.bias.name: tensors[first.bias.name][units].to(dtype)} if first.bias else {}
        return GroupFactors(tuple(members), others)

    def _hidden(self, first: Layer) -> int:
        return first.stage.outputs

    def _resized(self, bias: TensorSpec, size: int) -> TensorSpec:
        return TensorSpec(bias.name, (size,), bias.dtype, FACTORIZABLE_DTYPES[bias.dtype] * size)

"""Chains of small ordinary operations that stand in for one layer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from lrzip.layers import TensorSpec, by_module

# Rows of a product that are compared at a time, so that measuring an error needs no second copy of the matrix.
_ERROR_ROWS = 256


@dataclass(frozen=True)
class StageSpec:
    """One operation of a chain: `linear` with weight (out, in), or `conv1d`… with weight (out, in, *kernel)."""

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Factors:
    """A chain of operations whose composition approximates a layer.

    Attributes:
        weights: One tensor a stage, in the order in which they are applied and in the dtype in which they are stored.
            The layer's bias belongs to the last stage.
        error: Relative Frobenius error of the composed weights against the layer's, measured on what is stored.
        method: How they were computed.
        excess: Bound on the error, before it is stored, over that of the best factors of these ranks, less 1; None
            where it was not checked.
    """

    weights: tuple[Tensor, ...]
    error: float
    method: str
    excess: float | None = None


@dataclass(frozen=True)
class Chain:
    """The stored chain of one layer: `x.0.weight`, `x.1.weight`, with the bias, if any, at the last."""

    module: str
    weights: tuple[TensorSpec, ...]
    bias: TensorSpec | None

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight that the chain stands for: (out, in, *kernel)."""
        return (self.weights[-1].shape[0], *self.weights[0].shape[1:])

    @property
    def dense_name(self) -> str:
        """Name of the weight that the chain stands for."""
        return f"{self.module}.weight" if self.module else "weight"


def compose(weights: Sequence[Tensor]) -> Tensor:
    """Return the weight of the single layer that a chain computes.

    Args:
        weights: (rank, in, *kernel), then (out, rank, 1, …): every stage but the first is pointwise.

    Returns:
        (out, in, *kernel), float32 for lower precisions.
    """
    dense = _compute(weights[0].flatten(1))
    for weight in weights[1:]:
        dense = _compute(weight.flatten(1)) @ dense
    return dense.reshape(weights[-1].shape[0], *weights[0].shape[1:])


def relative_error(weight: Tensor, weights: Sequence[Tensor]) -> float:
    """Return ‖W − composed‖_F / ‖W‖_F, summed in float64; 0 for a zero weight that is met exactly."""
    *first, last = (_compute(stage.flatten(1)) for stage in weights)
    inner = first[0]
    for stage in first[1:]:
        inner = stage @ inner
    squared = scale = 0.0
    for rows, outer in zip(torch.split(weight.flatten(1), _ERROR_ROWS), torch.split(last, _ERROR_ROWS), strict=True):
        dense = rows.to(inner)
        squared += float(torch.linalg.vector_norm(dense - outer @ inner, dtype=torch.float64)) ** 2
        scale += float(torch.linalg.vector_norm(dense, dtype=torch.float64)) ** 2
    return float((squared / scale) ** 0.5) if scale else float(squared > 0)


def find_chains(tensors: Mapping[str, TensorSpec]) -> Sequence[Chain]:
    """Return the chains stored among tensors, recognized by keys and shapes alone.

    A chain is `x.0.weight`, `x.1.weight`, … with nothing else under `x.` but a bias of the last, whose shapes compose,
    whose later stages are pointwise, and which is smaller than its product. lrzip writes no other.
    """
    chains = (_chain(module, under) for module, under in by_module(tensors).items())
    return [chain for chain in chains if chain]


def _chain(module: str, under: Mapping[str, TensorSpec]) -> Chain | None:
    count = sum(1 for suffix in under if re.fullmatch(r"\d+\.weight", suffix))
    weights = tuple(under[f"{stage}.weight"] for stage in range(count) if f"{stage}.weight" in under)
    bias = under.get(f"{count - 1}.bias")
    if count < 2 or len(weights) != count or len(under) != count + (bias is not None):
        return None
    chain = Chain(module, weights, bias)
    pointwise = all(prod(spec.shape[2:]) == 1 for spec in weights[1:])
    composes = all(
        len(a.shape) == len(b.shape) >= 2 and a.shape[0] == b.shape[1] and a.dtype == b.dtype
        for a, b in pairwise(weights)
    )
    if not composes or not pointwise or (bias and bias.shape != weights[-1].shape[:1]):
        return None
    return chain if sum(spec.numel for spec in weights) < prod(chain.dense_shape) else None


def _compute(matrix: Tensor) -> Tensor:
    return matrix if matrix.dtype == torch.float64 else matrix.float()

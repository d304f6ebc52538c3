"""Chains of small ordinary operations that stand in for one layer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from lrzip.core.layers import TensorSpec, by_module, tensor_name

# Rows of a product that are compared at a time, so that measuring an error needs no second copy of the matrix.
_ERROR_ROWS = 256


@dataclass(frozen=True)
class StageSpec:
    """One operation of a chain: the kind of layer it is by itself, and the shape of its weight."""

    kind: str
    shape: tuple[int, ...]


MOST_STAGES = 3
"""Of any chain."""


def kernel_stage(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the index of the first stage that is not pointwise; of 0 if all are.

    That stage has the layer's stride, padding and dilation, but for an axis along which only another one has a kernel.
    """
    return next((index for index, shape in enumerate(shapes) if prod(shape[2:]) > 1), 0)


@dataclass(frozen=True)
class Factors:
    """A chain of operations whose composition approximates a layer.

    Attributes:
        weights: One tensor a stage, in the order in which they are applied and in the dtype in which they are stored.
            The layer's bias belongs to the last stage.
        error: Relative Frobenius error of the composed weights against the layer's, measured on what is stored.
        method: How they were computed.
        excess: Bound on the error, before it is stored, over that of the best factors of these ranks, less 1; None
            where it was not checked. Where moments of inputs are given, of the error on these inputs.
        output_error: Relative error of what the layer makes of its inputs, ‖(W − W′)X‖_F / ‖WX‖_F, where their moments
            are given.
    """

    weights: tuple[Tensor, ...]
    error: float
    method: str
    excess: float | None = None
    output_error: float | None = None


@dataclass(frozen=True)
class Chain:
    """The stored chain of one layer: `x.0.weight`, `x.1.weight`, with the bias, if any, at the last.

    `kind` is that of the layer it stands for; `ordinary` is a linear layer or a convolution.
    """

    module: str
    weights: tuple[TensorSpec, ...]
    bias: TensorSpec | None
    kind: str = "ordinary"

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight that the chain stands for."""
        return dense_shape([spec.shape for spec in self.weights], self.kind)

    @property
    def dense_name(self) -> str:
        """Name of the weight that the chain stands for."""
        return tensor_name(self.module, self.kind, "weight")


def dense_shape(shapes: Sequence[tuple[int, ...]], kind: str = "ordinary") -> tuple[int, ...]:
    """Return the shape of the weight that a chain of weights of these shapes stands for, by the kind of its layer."""
    first, last = shapes[0], shapes[-1]
    if kind == "embedding":
        return first[0], last[0]
    if kind == "linear_transposed":
        return first[1], last[0]
    if kind.startswith("conv_transpose"):
        return first[1], *last[1:]
    return last[0], first[1], *(max(sizes) for sizes in zip(*(shape[2:] for shape in shapes), strict=True))


def groups_of(shapes: Sequence[tuple[int, ...]], kind: str = "ordinary") -> int:
    """Return the groups of the layer that a chain of weights stands for."""
    ordinary = kind not in ("embedding", "linear_transposed") and not kind.startswith("conv_transpose")
    return shapes[0][0] // shapes[-1][1] if ordinary and len(shapes) == 2 else 1


def compose(weights: Sequence[Tensor], kind: str = "ordinary") -> Tensor:
    """Return the weight of the single layer that a chain computes.

    Args:
        weights: For a linear layer or a convolution any number, of which along each axis at most one has a kernel, and
            which are grouped if they take fewer channels than come; for other kinds two, as their decomposition stores
            them.
        kind: Of the layer.

    Returns:
        In the shape of the layer's own weight, float32 for lower precisions.
    """
    first, *rest = (_compute(weight) for weight in weights)
    if kind == "embedding":
        return first @ rest[0].mT
    if kind == "linear_transposed":
        return (rest[0] @ first).mT
    if kind.startswith("conv_transpose"):
        return torch.einsum("ri...,ro...->io...", first, rest[0])
    dense = first
    for stage in rest:
        groups = dense.shape[0] // stage.shape[1]
        left, right = (part.reshape(groups, -1, *part.shape[1:]) for part in (stage, dense))
        dense = torch.einsum("gor...,gri...->goi...", left, right).flatten(0, 1)
    return dense


def relative_difference(weight: Tensor, other: Tensor) -> float:
    """Return ‖A − B‖_F / ‖A‖_F; 0 where both are zero."""
    missed = float(torch.linalg.vector_norm(weight - other, dtype=torch.float64))
    scale = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
    return missed / scale if scale else missed


def relative_error(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    """Return ‖A − LR‖_F / ‖A‖_F, summed in float64; 0 for a zero matrix that is met exactly.

    Args:
        matrix: A (m, n).
        left: L (m, k).
        right: R (k, n).
    """
    inner = _compute(right)
    squared = scale = 0.0
    for rows, part in zip(torch.split(matrix, _ERROR_ROWS), torch.split(left, _ERROR_ROWS), strict=True):
        outer = _compute(part)
        dense = rows.to(inner)
        squared += float(torch.linalg.vector_norm(dense - outer @ inner, dtype=torch.float64)) ** 2
        scale += float(torch.linalg.vector_norm(dense, dtype=torch.float64)) ** 2
    return float((squared / scale) ** 0.5) if scale else float(squared > 0)


def find_chains(tensors: Mapping[str, TensorSpec], kinds: Mapping[str, str] | None = None) -> Sequence[Chain]:
    """Return the chains stored among tensors.

    A chain is `x.0.weight`, `x.1.weight`, … with nothing else under `x.` but a bias of the last, whose shapes compose
    and which is smaller than its product.

    Args:
        tensors: All tensors.
        kinds: The kinds of the layers of the architecture, by module, where it is known: only those have chains.
            Without it, chains are recognized by keys and shapes alone, which tells linear layers and convolutions.
    """
    modules = by_module(tensors)
    named = dict.fromkeys(modules, "ordinary") if kinds is None else kinds
    chains = (_chain(module, modules[module], kind) for module, kind in named.items() if module in modules)
    return [chain for chain in chains if chain]


def _chain(module: str, under: Mapping[str, TensorSpec], kind: str) -> Chain | None:
    count = sum(1 for suffix in under if re.fullmatch(r"\d+\.weight", suffix))
    weights = tuple(under[f"{stage}.weight"] for stage in range(count) if f"{stage}.weight" in under)
    bias = under.get(f"{count - 1}.bias")
    if count < 2 or len(weights) != count or len(under) != count + (bias is not None):
        return None
    chain = Chain(module, weights, bias, kind)
    fits = all(len(a.shape) == len(b.shape) >= 2 and a.dtype == b.dtype for a, b in pairwise(weights))
    if not fits or not _composes([spec.shape for spec in weights], kind):
        return None
    if bias and bias.shape != (_outputs(chain),):
        return None
    return chain if sum(spec.numel for spec in weights) < prod(chain.dense_shape) else None


def _composes(shapes: Sequence[tuple[int, ...]], kind: str) -> bool:
    first, last = shapes[0], shapes[-1]
    if kind == "embedding":
        return len(shapes) == 2 and first[1] == last[1]
    if kind.startswith("conv_transpose"):
        return len(shapes) == 2 and first[0] == last[0] and prod(first[2:]) == 1
    kernels = zip(*(shape[2:] for shape in shapes), strict=True)
    if any(sum(size > 1 for size in sizes) > 1 for sizes in kernels) or not all(prod(shape) for shape in shapes):
        return False
    if all(a[0] == b[1] for a, b in pairwise(shapes)):
        return True
    # Where a pointwise stage takes fewer channels than come, it is grouped, and so is the layer.
    groups = first[0] // last[1]
    grouped = len(shapes) == 2 and prod(last[2:]) == 1 and (len(first) > 2 or kind == "attention")
    return grouped and groups * last[1] == first[0] and last[0] % max(groups, 1) == 0


def _outputs(chain: Chain) -> int:
    last = chain.weights[-1].shape
    return last[1] if chain.kind.startswith("conv_transpose") else last[0]


def _compute(matrix: Tensor) -> Tensor:
    return matrix if matrix.dtype == torch.float64 else matrix.float()

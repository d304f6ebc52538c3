"""Operators of torch.export that are layers, with the positions of their weight, bias and input."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from lrzip.core.kinds import CONVOLUTIONS, EMBEDDING, LINEAR, LINEAR_TRANSPOSED, TRANSPOSED_CONVOLUTIONS, Kind

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Operator:
    """An operator that is a layer.

    Attributes:
        kind: Kind of the layer.
        weight: Position of the weight among the arguments.
        bias: Position of the bias; None if the operator has no bias.
        x: Position of the input.
        groups: Position of the number of groups; None if the operator has no groups.
    """

    kind: Kind
    weight: int = 1
    bias: int | None = 2
    x: int = 0
    groups: int | None = None


OPERATORS: Mapping[Any, Operator] = {
    _ATEN.linear.default: Operator(LINEAR),
    _ATEN.embedding.default: Operator(EMBEDDING, weight=0, bias=None, x=1),
    _ATEN.addmm.default: Operator(LINEAR_TRANSPOSED, weight=2, bias=0, x=1),
    _ATEN.mm.default: Operator(LINEAR_TRANSPOSED, bias=None),
    _ATEN.matmul.default: Operator(LINEAR_TRANSPOSED, bias=None),
    _ATEN.conv1d.default: Operator(CONVOLUTIONS[1], groups=6),
    _ATEN.conv2d.default: Operator(CONVOLUTIONS[2], groups=6),
    _ATEN.conv3d.default: Operator(CONVOLUTIONS[3], groups=6),
    _ATEN.conv1d.padding: Operator(CONVOLUTIONS[1], groups=6),
    _ATEN.conv2d.padding: Operator(CONVOLUTIONS[2], groups=6),
    _ATEN.conv3d.padding: Operator(CONVOLUTIONS[3], groups=6),
    _ATEN.conv_transpose1d.default: Operator(TRANSPOSED_CONVOLUTIONS[1], groups=6),
    _ATEN.conv_transpose2d.input: Operator(TRANSPOSED_CONVOLUTIONS[2], groups=6),
    _ATEN.conv_transpose3d.input: Operator(TRANSPOSED_CONVOLUTIONS[3], groups=6),
}


def tensor_argument(call: Node, position: int) -> Node:
    """Return the node whose value is the tensor at a position of a call's arguments."""
    argument = call.args[position]
    assert isinstance(argument, Node), f"{call.target} takes a tensor at position {position}"
    return argument


def is_layer(user: Node, weight: Node) -> bool:
    """Return whether a node calls a layer with this weight, and does not use the tensor for anything else."""
    operator = OPERATORS.get(user.target)
    if operator is None or user.kwargs:
        return False
    positions = [index for index, argument in enumerate(user.args) if argument is weight]
    matrix = len(weight.meta["val"].shape) == 2
    bias = bias_of(user)
    fits = bias is None or len(bias.meta["val"].shape) == 1  # addmm may add a matrix, which is not a bias
    return positions == [operator.weight] and fits and (matrix or operator.kind.is_convolution)


def signature(user: Node) -> tuple[Kind, int]:
    """Return the kind and the groups of a call of a layer."""
    return OPERATORS[user.target].kind, groups_of(user)


def groups_of(user: Node) -> int:
    """Return the number of groups of a call of a convolution, or 1 for other layers."""
    position = OPERATORS[user.target].groups
    groups = user.args[position] if position is not None and len(user.args) > position else 1
    return groups if isinstance(groups, int) else 1


def bias_of(user: Node) -> Node | None:
    """Return the node of the bias of a call of a layer, or None."""
    position = OPERATORS[user.target].bias
    bias = user.args[position] if position is not None and len(user.args) > position else None
    return bias if isinstance(bias, Node) else None

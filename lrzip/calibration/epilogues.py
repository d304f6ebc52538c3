"""Epilogues of layers: a batch norm, the addition of another branch, and a ReLU, each of them optional."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lrzip.networks.programs.operators import OPERATORS, bias_of, tensor_argument

_ATEN = torch.ops.aten
_IDENTITIES = (_ATEN.alias.default, _ATEN.clone.default, _ATEN.contiguous.default, _ATEN.dropout.default)
_SUMS = (_ATEN.add.Tensor, _ATEN.add_.Tensor)
_RELUS = (_ATEN.relu.default, _ATEN.relu_.default)
# A channel is dead if a batch norm scales it by less than this share of the largest scale.
_DEAD = 1e-3


@dataclass(frozen=True)
class Epilogue:
    """The operations after a layer, as long as nothing else uses the values in between.

    Attributes:
        bias: Node of the layer's own bias.
        norm: Node of a batch norm in evaluation mode.
        other: Node that is added to the output of the layer or the norm.
        rectified: Whether a ReLU follows.
    """

    bias: Node | None
    norm: Node | None = None
    other: Node | None = None
    rectified: bool = False

    @property
    def running_mean(self) -> Node | None:
        """Node of the running mean of the batch norm."""
        mean = self.norm.args[3] if self.norm else None
        return mean if isinstance(mean, Node) else None

    def target(self, output: Tensor, dense: Mapping[Node, Any], compressed: Mapping[Node, Any]) -> Tensor:
        """Return the target of a layer: its dense output, plus the error of the branch that is added to it.

        Args:
            output: Output of the layer in the dense program.
            dense: Values in the dense program by node.
            compressed: Values in the compressed program by node.
        """
        if self.other is None:
            return output
        error: Tensor = dense[self.other] - compressed[self.other]
        if self.norm is None:
            return output + error
        scale, _ = self.scaling(dense)
        return output + error * inverse(scale).reshape(-1, *(1,) * (output.dim() - 2))

    def scaling(self, dense: Mapping[Node, Any]) -> tuple[Tensor, Tensor]:
        """Return the scale and the shift of the batch norm, (channels,); there must be one.

        Args:
            dense: Values in the dense program by node.
        """
        assert self.norm, "callers check that there is a batch norm"
        _, weight, bias, _, _, _, _, eps, *_ = self.norm.args
        mean, variance = (dense[tensor_argument(self.norm, position)] for position in (3, 4))
        scale = (variance + eps).rsqrt()
        scale = scale * dense[weight] if isinstance(weight, Node) else scale
        shift = -mean * scale
        return scale, shift + dense[bias] if isinstance(bias, Node) else shift


def inverse(scale: Tensor) -> Tensor:
    """Return the inverse of the scale of a batch norm, and 0 for dead channels.

    In a dead channel, the inverse of the scale would amplify errors that the norm suppresses.
    """
    return torch.where(scale.abs() > _DEAD * scale.abs().max(), 1 / scale, 0)


def find_epilogues(calls: Iterable[Node], *, residual: bool) -> dict[Node, Epilogue]:
    """Return the epilogues of calls of layers.

    Args:
        calls: Nodes of the calls, in the order of the graph. If the outputs of two calls are added, only the epilogue
            of the first one includes the addition.
        residual: Whether to look for the addition of another branch.
    """
    found: dict[Node, Epilogue] = {}
    sums: set[Node] = set()
    for node in calls:
        norm, last = _through_norm(node)
        total = next(iter(last.users)) if residual and len(last.users) == 1 else None
        other = _other(total, node, last) if total is not None and total not in sums else None
        if total is not None and other is not None:
            sums.add(total)
            last = _through_identities(total)
        found[node] = Epilogue(bias_of(node), norm, other, _is_rectified(last))
    return found


def _through_norm(node: Node) -> tuple[Node | None, Node]:
    """Return the batch norm after a layer, if there is one, and the last node of the norm and of identities."""
    norm, last = None, node
    while len(last.users) == 1:
        user = next(iter(last.users))
        if norm is None and _is_norm(user, last) and _has_channels(node):
            norm = user
        elif not _is_identity(user, last):
            break
        last = user
    return norm, last


def _through_identities(node: Node) -> Node:
    """Return the last of the nodes after a node that do not change its value."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if not _is_identity(user, node):
            break
        node = user
    return node


def _is_identity(node: Node, x: Node) -> bool:
    return node.target in _IDENTITIES and node.args[0] is x and True not in node.args[1:]


def _is_rectified(node: Node) -> bool:
    return len(node.users) == 1 and next(iter(node.users)).target in _RELUS


def _is_norm(node: Node, x: Node) -> bool:
    return node.target is _ATEN.batch_norm.default and node.args[0] is x and not node.args[5]


def _has_channels(layer: Node) -> bool:
    """Return whether a batch norm's channels, on axis 1, are those of a layer."""
    return OPERATORS[layer.target].kind.is_convolution or len(layer.meta["val"].shape) == 2


def _other(total: Node, layer: Node, last: Node) -> Node | None:
    """Return the node that is added to a layer's output, if it has the same shape and may be computed first."""
    if total.target not in _SUMS or len(total.args) != 2 or total.kwargs:
        return None
    others = [x for x in total.args if x is not last]
    if len(others) != 1 or not isinstance(others[0], Node) or others[0].op == "placeholder":
        return None
    other = others[0]
    # Compared as text, since sizes may be symbols.
    shapes = [[str(size) for size in getattr(n.meta.get("val"), "shape", ())] for n in (other, last)]
    return other if shapes[0] == shapes[1] and _may_come_first(other, layer) else None


def _may_come_first(node: Node, layer: Node) -> bool:
    """Return whether the other operand of a sum can be computed before a layer: no node in between mutates a value.

    The operand does not depend on the layer, since the sum is the only user of its output.
    """
    order = {n: index for index, n in enumerate(layer.graph.nodes)}
    between = [n for n in layer.graph.nodes if order[layer] <= order[n] <= order[node]]
    return not any(_mutates(n) for n in between)


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and (schema is None or schema.is_mutable) and node.target not in OPERATORS

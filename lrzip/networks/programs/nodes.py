"""Structures as nodes of an exported program."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Node, map_arg

from lrzip.core.structure import Chain, Reshape, Select, Stage, Structure, Sum, biased_part, stages
from lrzip.networks.programs.operators import OPERATORS, bias_of

_ATEN = torch.ops.aten
_CONVOLUTIONS = {1: _ATEN.conv1d.default, 2: _ATEN.conv2d.default, 3: _ATEN.conv3d.default}


def replace_call(user: Node, structure: Structure, tensors: Sequence[Node]) -> Node:
    """Replace a call of a layer by the nodes of a structure.

    The node of the call is reused for the last stage and keeps its name and metadata; all other nodes are new.

    Args:
        user: Call of the layer.
        structure: What replaces the layer.
        tensors: Placeholders of the tensors of the structure, in the order of `lrzip.core.structure.leaves`.

    Returns:
        The node that computes the output of the structure: the reused one, or a new one after it.
    """
    builder = _Builder(user, structure, iter(tensors))
    users = list(user.users)
    result: Node = builder.emit(structure, user.args[OPERATORS[user.target].x])
    if result is not user:
        for after in users:
            after.replace_input_with(user, result)
    return result


class _Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution: a size for each axis, or a mode of padding."""

    stride: list[int]
    padding: list[int] | str
    dilation: list[int]
    output_padding: list[int]

    def along(self, axes: Sequence[bool]) -> "_Geometry":
        """Return the geometry along some axes, and that of a kernel of size 1 along the others."""
        padding = self.padding if isinstance(self.padding, str) else _chosen(self.padding, axes, 0)
        sizes = (_chosen(self.stride, axes, 1), padding, _chosen(self.dilation, axes, 1))
        return _Geometry(*sizes, _chosen(self.output_padding, axes, 0))


class _Builder:
    """Inserts the nodes of one structure around the call that it replaces."""

    def __init__(self, user: Node, structure: Structure, tensors: Iterator[Node]) -> None:
        self._user, self._tensors = user, tensors
        self._last, self._biased = stages(structure)[-1], biased_part(structure)[1]
        self._operator, self._target, self._args = OPERATORS[user.target], user.target, user.args
        self._bias = bias_of(user)
        self._behind: Node | None = None

    def emit(self, structure: Structure, x: Any) -> Any:
        """Return the node of a structure that is applied to `x`."""
        if isinstance(structure, Chain):
            for part in structure.parts:
                x = self.emit(part, x)
            return x
        if isinstance(structure, Sum):
            first, *others = [self.emit(branch, x) for branch in structure.branches]
            for other in others:
                first = self._insert(_ATEN.add.Tensor, (first, other))
            return first
        if isinstance(structure, Select):
            axis = self._operator.kind.channel_axis
            return self._insert(_ATEN.index_select.default, (x, axis, next(self._tensors)))
        if isinstance(structure, Reshape):
            return self._rearrange(structure, x)
        target, args = self._call(structure, x, next(self._tensors))
        return self._reuse(target, args) if structure is self._last else self._insert(target, args)

    def _call(self, stage: Stage, x: Any, weight: Node) -> tuple[Any, tuple[Any, ...]]:
        """Return the operator of a stage and its arguments."""
        bias = self._bias if stage is self._biased else None
        if stage.kind.is_indexed:
            return self._target, (weight, *self._args[1:])
        if not stage.kind.is_convolution:
            return _ATEN.linear.default, (x, weight, bias) if bias is not None or stage is self._last else (x, weight)
        taken = self._geometry(stage.kind.spatial).along(stage.axes)
        if stage.kind.is_transposed_convolution:
            sizes: tuple[Any, ...] = (taken.stride, taken.padding, taken.output_padding, stage.groups, taken.dilation)
            return self._target, (x, weight, bias, *sizes)
        if isinstance(taken.padding, str) and not any(stage.axes):
            taken = taken._replace(padding=[0] * stage.kind.spatial)
        target = self._target if isinstance(taken.padding, str) else _CONVOLUTIONS[stage.kind.spatial]
        return target, (x, weight, bias, taken.stride, taken.padding, taken.dilation, stage.groups)

    def _geometry(self, axes: int) -> _Geometry:
        given = dict(enumerate(self._args))
        padding = given.get(4, 0)
        sides = padding if isinstance(padding, str) else _each(padding, axes)
        if self._operator.kind.is_transposed_convolution:
            return _Geometry(
                _each(given.get(3, 1), axes), sides, _each(given.get(7, 1), axes), _each(given.get(5, 0), axes)
            )
        return _Geometry(_each(given.get(3, 1), axes), sides, _each(given.get(5, 1), axes), [0] * axes)

    def _rearrange(self, reshape: Reshape, x: Node) -> Node:
        count = x.meta["val"].dim() - reshape.axes
        sizes = x.meta["val"].shape[:count]
        leading = [
            size if isinstance(size, int) else self._insert(_ATEN.sym_size.int, (x, axis))
            for axis, size in enumerate(sizes)
        ]
        order = [*range(count), *(count + axis for axis in reshape.order)]
        viewed = self._insert(_ATEN.reshape.default, (x, [*leading, *reshape.view]))
        moved = self._insert(_ATEN.permute.default, (viewed, order))
        result = self._insert(_ATEN.reshape.default, (moved, [*leading, *reshape.shape]))
        if self._bias is None or reshape is not self._biased:
            return result
        return self._insert(_ATEN.add.Tensor, (result, self._bias))

    def _reuse(self, target: Any, args: tuple[Any, ...]) -> Node:
        self._behind = self._user
        self._user.target, self._user.args = target, args
        self._user.meta["val"] = self._value(target, args)
        return self._user

    def _insert(self, target: Any, args: tuple[Any, ...]) -> Node:
        """Insert a node before the call, or after it once the call is reused, with the shapes it computes."""
        graph = self._user.graph
        with graph.inserting_after(self._behind) if self._behind else graph.inserting_before(self._user):
            node = graph.call_function(target, args)
        if self._behind:
            self._behind = node
        node.meta = {key: value for key, value in self._user.meta.items() if key != "val"}
        node.meta["val"] = self._value(target, args)
        return node

    def _value(self, target: Any, args: tuple[Any, ...]) -> Any:
        with self._user.meta["val"].fake_mode:
            return target(*map_arg(args, lambda argument: argument.meta["val"]))


def _each(size: Any, axes: int) -> list[int]:
    """Expand a size argument of an operator to one size per axis."""
    sizes = list(size) if isinstance(size, Sequence) else [size]
    return sizes * axes if len(sizes) == 1 else sizes


def _chosen(sizes: Sequence[int], axes: Sequence[bool], other: int) -> list[int]:
    return [size if takes else other for size, takes in zip(sizes, axes, strict=True)]

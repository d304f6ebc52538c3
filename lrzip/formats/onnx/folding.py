"""Constants behind nodes that only cast or rearrange them, which are folded into the weights of layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from torch import Tensor

from lrzip.core.layers import TensorSpec
from lrzip.formats.onnx.data import spec_of

OWN_DOMAIN = ("", "ai.onnx")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_MOST_AXES = 16

Step: TypeAlias = tuple[str, tuple[int, ...]]
"""`Transpose` with the order of axes, or `Reshape` with the shape."""


class Use(NamedTuple):
    """A use of a constant, as the input of a node at a position."""

    node: ir.Node
    position: int


@dataclass(frozen=True)
class Constant:
    """A constant of a graph, and what nodes do to it before it is used.

    Attributes:
        value: Initializer, or output of a Constant node.
        tensor: Its tensor.
        uses: Uses, behind the nodes of the chain.
        chain: Nodes between the constant and its uses, in order.
        steps: Rearrangements by the chain, the same for all uses.
        dtype: Dtype in which factors are stored: the narrowest along the chain.
        used_as: Dtype of the uses.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    uses: Sequence[Use]
    chain: Sequence[ir.Node]
    steps: Sequence[Step]
    dtype: ir.DataType
    used_as: ir.DataType

    @classmethod
    def plain(cls, value: ir.Value, tensor: ir.TensorProtocol) -> "Constant":
        """Return a constant with its direct uses."""
        uses = [Use(usage.node, usage.idx) for usage in value.uses()]
        return cls(value, tensor, uses, (), (), tensor.dtype, tensor.dtype)

    @classmethod
    def folded(cls, value: ir.Value, tensor: ir.TensorProtocol) -> "Constant | None":
        """Return a constant with its uses behind nodes, or None if there are no such nodes or they differ by use."""
        if tensor.dtype not in _FLOATS or value.is_graph_output():
            return None
        start = _Form(tuple(int(size) for size in tensor.shape.numpy()), (), (tensor.dtype,))
        chain: list[ir.Node] = []
        found = list(_follow(value, start, chain))
        forms = {form for _, form in found}
        if not chain or len(forms) != 1:
            return None
        (form,) = forms
        dtype = min(form.dtypes, key=lambda dtype: dtype.bitwidth)
        return cls(value, tensor, [use for use, _ in found], chain, form.steps, dtype, form.dtypes[-1])

    @property
    def is_input(self) -> bool:
        """Whether it is also an input of the graph."""
        return self.value.is_graph_input()

    def spec(self, name: str) -> TensorSpec:
        """Return the spec of the tensor as it is used, in the dtype in which it is stored."""
        spec = spec_of(name, self.tensor)
        if not self.chain:
            return spec
        shape = spec.shape
        for kind, sizes in self.steps:
            shape = tuple(shape[axis] for axis in sizes) if kind == "Transpose" else sizes
        stored = ir.serde.TensorProtoTensor(onnx.TensorProto(dims=shape, data_type=self.dtype.value))
        return spec_of(name, stored)

    def rearranged(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is used, given as it is stored."""
        for kind, sizes in self.steps:
            tensor = tensor.permute(sizes) if kind == "Transpose" else tensor.reshape(sizes)
        return tensor.contiguous()


class _Form(NamedTuple):
    """A tensor behind nodes: its shape, the steps that lead to it, and the dtypes along the way."""

    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    dtypes: tuple[ir.DataType, ...]


def _follow(value: ir.Value, form: _Form, chain: list[ir.Node]) -> Iterator[tuple[Use, _Form]]:
    """Yield the uses of a value behind nodes that rearrange it; these nodes are added to the chain."""
    for usage in value.uses():
        node = usage.node
        after = _after(node, usage.idx, form)
        if after is None:
            yield Use(node, usage.idx), form
            continue
        chain.append(node)
        yield from _follow(node.outputs[0], after, chain)


def _after(node: ir.Node, index: int, form: _Form) -> _Form | None:
    """Return what a node makes of a tensor, or None if it does more than to cast and rearrange it."""
    if node.domain not in OWN_DOMAIN or index != 0 or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    if node.op_type == "Identity":
        return form
    if node.op_type == "Cast":
        dtype = ir.DataType(node.attributes["to"].as_int()) if "to" in node.attributes else None
        return form._replace(dtypes=(*form.dtypes, dtype)) if dtype in _FLOATS else None
    if node.op_type == "Transpose":
        order = _integers(node, "perm", None) or tuple(reversed(range(len(form.shape))))
        if sorted(order) != list(range(len(form.shape))):
            return None
        return form._replace(shape=tuple(form.shape[axis] for axis in order), steps=(*form.steps, ("Transpose", order)))
    shape = _reshaped(node, form.shape)
    if shape is None or prod(shape) != prod(form.shape) or 0 in shape or min(shape, default=1) < 0:
        return None
    return form._replace(shape=shape, steps=(*form.steps, ("Reshape", shape)) if shape != form.shape else form.steps)


def _reshaped(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of the output of a node that changes only the shape, or None for other nodes."""
    axes = len(shape)
    if node.op_type == "Reshape":
        sizes = _integers(node, "shape", 1)
        if sizes is None or ("allowzero" in node.attributes and node.attributes["allowzero"].as_int()):
            return None
        kept = [shape[axis] if size == 0 and axis < axes else size for axis, size in enumerate(sizes)]
        known = prod(size for size in kept if size != -1)
        return tuple(prod(shape) // known if size == -1 and known > 0 else size for size in kept)
    if node.op_type == "Flatten":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        return (prod(shape[:axis]), prod(shape[axis:]))
    given = _integers(node, "axes", 1)
    if node.op_type == "Squeeze" and given is not None:
        dropped = {axis % axes for axis in given if axes}
        return tuple(size for axis, size in enumerate(shape) if axis not in dropped)
    if node.op_type == "Unsqueeze" and given is not None:
        total = axes + len(given)
        added, sizes_ = {axis % total for axis in given}, iter(shape)
        return tuple(1 if axis in added else next(sizes_, 1) for axis in range(total))
    return None


def _integers(node: ir.Node, name: str, index: int | None) -> tuple[int, ...] | None:
    """Return the integers of an attribute or a constant input of a node, or None if they are not known."""
    if name in node.attributes:
        return tuple(node.attributes[name].as_ints())
    value = node.inputs[index] if index is not None and len(node.inputs) > index else None
    tensor = tensor_of(value) if value is not None and not value.is_graph_input() else None
    if tensor is None or tensor.dtype != ir.DataType.INT64 or len(tensor.shape) > 1:
        return None
    sizes = [int(size) for size in tensor.shape.numpy()]
    if prod(sizes) > _MOST_AXES or isinstance(tensor, ir.ExternalTensor):
        return None
    return tuple(int(number) for number in tensor.numpy().ravel())


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or of the output of a Constant node, or None for other values."""
    node = value.producer()
    if node is None:
        return value.const_value
    if node.op_type != "Constant" or node.domain not in OWN_DOMAIN:
        return None
    if "value" in node.attributes:
        return node.attributes["value"].as_tensor()
    if "value_floats" in node.attributes:
        return ir.tensor(np.array(node.attributes["value_floats"].as_floats(), np.float32), name=value.name)
    if "value_ints" in node.attributes:
        return ir.tensor(np.array(node.attributes["value_ints"].as_ints(), np.int64), name=value.name)
    return None

"""Structures as nodes of an ONNX graph."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from lrzip.core.errors import LrzipError
from lrzip.core.structure import Chain, Reshape, Select, Stage, Structure, Sum, biased_part, stages
from lrzip.formats.onnx.graph import SCOPES, integer

_BIAS_INPUT = 2
# From this opset on, Gemm may do without a bias.
_GEMM_WITHOUT_BIAS = 11
_SCOPES = (SCOPES, "namespace")
_SHAPES = ("auto_pad", "kernel_shape", "output_padding", "output_shape")
_GEOMETRY = {"strides": 1, "dilations": 1, "pads": 0}
"""Attributes with a size for each axis, and that size for a kernel of size 1."""


def replace_use(
    node: ir.Node, index: int, structure: Structure, tensors: Sequence[ir.Value], opset: int, name: Callable[[str], str]
) -> None:
    """Replace a node by the nodes of a structure.

    The node is reused for the last stage and keeps its name, its bias and, if no other node follows, its outputs.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul.
        index: Which of its inputs is the weight that is replaced.
        structure: What replaces the layer.
        tensors: Initializers of the tensors of the structure, in the order of `lrzip.core.structure.leaves`.
        opset: Version of ONNX's own operators in the model.
        name: Returns an unused name, given a preferred one.
    """
    builder = _Builder(node, index, structure, iter(tensors), opset, name)
    (output,) = node.outputs
    uses = tuple(output.uses())
    result = builder.emit(structure, node.inputs[builder.position])
    if result is output:
        return
    for usage in uses:
        usage.node.replace_input_with(usage.idx, result)
    graph = _graph_of(node)
    for place, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[place] = result
    result.name, output.name = output.name, result.name
    result.type, result.shape = output.type, output.shape


class _Builder:
    """Inserts the nodes of one structure around the node that it replaces."""

    def __init__(
        self,
        node: ir.Node,
        index: int,
        structure: Structure,
        tensors: Iterator[ir.Value],
        opset: int,
        name: Callable[[str], str],
    ) -> None:
        self._node, self._tensors, self._opset, self._name = node, tensors, opset, name
        self._last, self._biased = stages(structure)[-1], biased_part(structure)[1]
        self._rearranges = isinstance(self._biased, Reshape)
        self.position = 1 - index if node.op_type == "MatMul" else 0
        self._op_type, self._attributes = node.op_type, dict(node.attributes)
        self._groups = integer(node, "group", 1)
        self._bias = node.inputs[_BIAS_INPUT] if len(node.inputs) > _BIAS_INPUT else None
        self._axes = 2 if node.op_type == "Gemm" else None  # number of axes of the input, updated as it is rearranged
        self._behind: ir.Node | None = None

    def emit(self, structure: Structure, x: ir.Value | None) -> ir.Value:
        """Return the output of a structure that is applied to `x`."""
        assert x is not None
        if isinstance(structure, Chain):
            for part in structure.parts:
                x = self.emit(part, x)
            return x
        if isinstance(structure, Sum):
            first, *others = [self.emit(branch, x) for branch in structure.branches]
            for other in others:
                first = self._insert("Add", [first, other])
            return first
        if isinstance(structure, Select):
            axis = 1 if self._is_convolution else -1 - self.position
            return self._insert("Gather", [x, next(self._tensors)], [ir.AttrInt64("axis", axis)])
        if isinstance(structure, Reshape):
            return self._rearrange(structure, x)
        return self._stage(structure, x, next(self._tensors))

    @property
    def _is_convolution(self) -> bool:
        return self._op_type in ("Conv", "ConvTranspose")

    def _stage(self, stage: Stage, x: ir.Value, weight: ir.Value) -> ir.Value:
        if self._rearranges:
            return self._matmul(stage, x, weight)
        op_type = self._op_type
        if self._is_convolution:
            op_type = "ConvTranspose" if stage.kind.is_transposed_convolution else "Conv"
        attributes = self._convolution(stage) if self._is_convolution else self._product(stage)
        if stage is self._last:
            return self._reuse(op_type, x, weight, attributes)
        inputs = [x, weight] if self.position == 0 else [weight, x]
        if op_type == "Gemm" and self._opset < _GEMM_WITHOUT_BIAS:
            inputs.append(self._zero(weight))
        return self._insert(op_type, inputs, attributes)

    def _matmul(self, stage: Stage, x: ir.Value, weight: ir.Value) -> ir.Value:
        """Return the product along the last axis; Gemm, which takes matrices only, becomes MatMul."""
        if integer(self._node, "transB", 0) and self._op_type == "Gemm":
            weight = self._insert("Transpose", [weight], [ir.AttrInt64s("perm", [1, 0])])
        if stage is not self._last:
            return self._insert("MatMul", [x, weight])
        self._node.resize_inputs(2)
        return self._reuse("MatMul", x, weight, ())

    def _product(self, stage: Stage) -> list[ir.Attr]:
        """Return the attributes of Gemm; only the last stage keeps those that scale products."""
        kept = self._attributes if stage is self._last else ("transB", "broadcast")
        return [self._attributes[name] for name in kept if name in self._attributes]

    def _convolution(self, stage: Stage) -> list[ir.Attr]:
        """Return the attributes of a stage: the geometry of the replaced node along the axes that the stage takes."""
        names = [*_SHAPES, *_GEOMETRY]
        attributes = {name: attribute for name, attribute in self._attributes.items() if name not in names}
        if all(stage.axes):
            attributes = dict(self._attributes)
        elif any(stage.axes):
            attributes |= self._along(stage)
        if stage.groups != self._groups:
            attributes["group"] = ir.AttrInt64("group", stage.groups)
        return list(attributes.values())

    def _along(self, stage: Stage) -> dict[str, ir.Attr]:
        given = self._attributes
        found = {"kernel_shape": ir.AttrInt64s("kernel_shape", list(stage.kind.kernel(stage.shape)))}
        for name, other in _GEOMETRY.items():
            if name in given:
                sizes = given[name].as_ints()
                axes = stage.axes * (len(sizes) // len(stage.axes))
                chosen = [size if takes else other for size, takes in zip(sizes, axes, strict=True)]
                found[name] = ir.AttrInt64s(name, chosen)
        return found | ({"auto_pad": given["auto_pad"]} if "auto_pad" in given else {})

    def _rearrange(self, reshape: Reshape, x: ir.Value) -> ir.Value:
        scales = [self._attributes[name].as_float() for name in ("alpha", "beta") if name in self._attributes]
        if self._axes is None and x.shape is not None:
            self._axes = len(x.shape)
        if self.position or self._axes is None or set(scales) - {1.0}:
            raise LrzipError(f"The input of `{self._node.name}` cannot be rearranged. Take its layer out of the plan.")
        leading = self._axes - reshape.axes
        order = [*range(leading), *(leading + axis for axis in reshape.order)]
        viewed = self._insert("Reshape", [x, self._integers([0] * leading + list(reshape.view))])
        moved = self._insert("Transpose", [viewed], [ir.AttrInt64s("perm", order)])
        result = self._insert("Reshape", [moved, self._integers([0] * leading + list(reshape.shape))])
        self._axes = leading + len(reshape.shape)
        if self._bias is None or reshape is not self._biased:
            return result
        return self._insert("Add", [result, self._bias])

    def _reuse(self, op_type: str, x: ir.Value, weight: ir.Value, attributes: Sequence[ir.Attr]) -> ir.Value:
        """Reuse the replaced node for the last stage."""
        node = self._node
        node.op_type = op_type
        node.replace_input_with(self.position, x)
        node.replace_input_with(1 - self.position, weight)
        kept = {attribute.name: attribute for attribute in attributes}
        for name in [name for name in node.attributes if name not in kept]:
            node.attributes.pop(name)
        node.attributes.update(kept)
        self._behind = node
        return node.outputs[0]

    def _insert(self, op_type: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()) -> ir.Value:
        """Insert a node before the replaced one, or after it once it is reused."""
        node, graph = self._node, _graph_of(self._node)
        made = ir.Node(
            node.domain,
            op_type,
            inputs,
            attributes,
            name=self._name(node.name or op_type),
            metadata_props={key: node.metadata_props[key] for key in _SCOPES if key in node.metadata_props},
        )
        (output,) = made.outputs
        output.name = self._name(str(node.outputs[0].name))
        output.type = node.outputs[0].type
        if self._behind is None:
            graph.insert_before(node, made)
        else:
            graph.insert_after(self._behind, made)
            self._behind = made
        return output

    def _zero(self, like: ir.Value) -> ir.Value:
        """Return a new bias of zeros."""
        assert like.dtype is not None
        dtype, name = like.dtype, self._name("zero")
        proto = onnx.TensorProto(name=name, dims=(1,), data_type=dtype.value, raw_data=bytes(dtype.bitwidth // 8))
        return registered(_graph_of(self._node), ir.serde.TensorProtoTensor(proto))

    def _integers(self, values: Sequence[int]) -> ir.Value:
        """Return a new constant of integers."""
        tensor = ir.Tensor(np.array(values, dtype=np.int64), name=self._name("shape"))
        return registered(_graph_of(self._node), tensor)


def registered(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Return a new initializer of a graph."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _graph_of(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph

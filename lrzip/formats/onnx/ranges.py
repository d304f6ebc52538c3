"""Find the tables that the integer inputs of an ONNX model are indices of."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from lrzip.formats.onnx.graph import integer

_INDEX_INPUT = 1
# Nodes whose outputs are elements of their first input.
_SELECTING = (
    "Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
)  # fmt: skip
# Embeddings of onnxruntime's own operator: the input with the table of each input with indices.
_EMBEDDINGS = {0: 2, 1: 4}


def index_limits(model: ir.Model) -> Mapping[str, int]:
    """Return the number of rows of the smallest table that is indexed by each integer input of a model."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        sizes = list(_sizes(value, set()))
        if sizes and min(sizes) > 0:
            found[str(value.name)] = min(sizes)
    return found


def _sizes(value: ir.Value, seen: set[ir.Value]) -> Iterator[int]:
    """Yield the sizes of the tables that a value, or a value made of its elements, is an index of."""
    if value in seen:
        return
    seen.add(value)
    for node, index in [(usage.node, usage.idx) for usage in value.uses()]:
        table = _table(node, index)
        if table is not None:
            yield table
        elif index == 0 and node.op_type in _SELECTING:
            for output in node.outputs:
                yield from _sizes(output, seen)


def _table(node: ir.Node, index: int) -> int | None:
    if node.op_type == "Gather" and index == _INDEX_INPUT:
        source, axis = node.inputs[0], integer(node, "axis", 0)
    elif node.op_type == "EmbedLayerNormalization" and index in _EMBEDDINGS:
        source, axis = node.inputs[_EMBEDDINGS[index]], 0
    else:
        return None
    tensor = source.const_value if source is not None else None
    if tensor is None or not -len(tensor.shape) <= axis < len(tensor.shape):
        return None
    return int(tensor.shape.numpy()[axis])

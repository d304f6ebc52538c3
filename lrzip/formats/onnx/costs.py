"""Multiply-accumulates of an ONNX model, computed from the shapes that onnx infers."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import onnx

from lrzip.core.costs import Positions
from lrzip.core.errors import LrzipError, one_line

Shapes: TypeAlias = Mapping[str, Sequence[int]]
_OWN_DOMAIN = ("", "ai.onnx")


def positions_and_macs(path: Path, sizes: Sequence[Sequence[int]]) -> tuple[Mapping[str, Positions], int] | None:
    """Return the multiplications of one run of a model.

    Args:
        path: Path of the model.
        sizes: Shapes of the inputs in their order. If empty, the declared ones are used, with symbolic dimensions of
            size 1.

    Returns:
        How often each element of a weight is multiplied, by the name of the weight, and the multiply-accumulates of
        the whole model; None if shapes depend on values, so that they cannot be inferred.

    Raises:
        LrzipError: The model does not take inputs of these shapes.
    """
    model = onnx.load(str(path.absolute()), format="protobuf", load_external_data=False)
    _fix_inputs(path, model.graph, sizes)
    for value in [*model.graph.value_info, *model.graph.output]:  # to be inferred again for these sizes
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=bool(sizes), data_prop=True).graph
    except Exception as error:
        raise LrzipError(f"`{path}` does not take inputs of these sizes: {one_line(error)}.") from error
    positions: dict[str, Positions] = {}
    macs = 0
    for node, shapes in _nodes(graph, {}):
        found = _positions(node, shapes)
        if found is None:
            return None
        times, weight, products = found
        positions[weight] = positions[weight].plus(times) if weight in positions else times
        macs += products
    return positions, macs


def _fix_inputs(path: Path, graph: Any, sizes: Sequence[Sequence[int]]) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if sizes and len(sizes) != len(inputs):
        names = ", ".join(f"`{value.name}`" for value in inputs)
        raise LrzipError(
            f"`{path}` takes {len(inputs)} inputs, {names}; give `input_shapes=SIZES` for each, in this order."
        )
    for number, value in enumerate(inputs):
        dimensions = value.type.tensor_type.shape.dim
        given = sizes[number] if sizes else [size.dim_value or 1 for size in dimensions]
        if len(given) != len(dimensions) or any(
            d.dim_value not in (0, g) for d, g in zip(dimensions, given, strict=True)
        ):
            declared = ", ".join(d.dim_param or str(d.dim_value) for d in dimensions)
            raise LrzipError(f"`{path}` declares its input `{value.name}` as ({declared}), not {tuple(given)}.")
        for dimension, size in zip(dimensions, given, strict=True):
            dimension.dim_value = size


def _nodes(graph: Any, outer: Shapes) -> Iterator[tuple[Any, Shapes]]:
    """Yield the nodes that multiply matrices with the shapes of all values in their scope.

    Subgraphs are included, so both branches of an If are counted.
    """
    values = [*graph.input, *graph.value_info, *graph.output]
    known = {value.name: _shape(value) for value in values if value.type.tensor_type.HasField("shape")}
    shapes = dict(outer) | {name: shape for name, shape in known.items() if 0 not in shape}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                shapes[node.output[0]] = list(attribute.t.dims)
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g, shapes)
        if node.domain in _OWN_DOMAIN and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            yield node, shapes


def _shape(value: Any) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def _positions(node: Any, shapes: Shapes) -> tuple[Positions, str, int] | None:
    """Return how often a node multiplies the elements of a weight, the weight's name, and the number of products."""
    left, right = (shapes.get(name) for name in node.input[:2])
    out = shapes.get(node.output[0])
    if left is None or right is None or out is None:
        return None
    weight = node.input[1]
    if node.op_type in ("Conv", "ConvTranspose"):
        applied = left if node.op_type == "ConvTranspose" else out
        return Positions.of(left[0], left[2:], out[2:]), weight, applied[0] * prod(applied[2:]) * prod(right)
    # A matrix on either side; of two that are computed the right one counts as the weight.
    inner = prod(left) // out[0] if node.op_type == "Gemm" else left[-1]
    products = prod(out) * inner
    is_left = len(left) == 2 and len(right) != 2
    weight, size = (node.input[0], prod(left)) if is_left else (weight, prod(right))
    return Positions.of(products // max(size, 1)), weight, products

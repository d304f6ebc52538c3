"""Shapes of the values of an ONNX model, as onnx infers them for inputs of given sizes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import onnx

from lrzip.core.errors import LrzipError

Shape: TypeAlias = tuple[int, ...]
# Sizes that are tried for open axes other than the batch, from that of images and texts on.
OPEN_SIZES = (256, 128, 64, 32, 16, 512, 4, 2, 1)
_BATCH_NAMES = ("n", "b", "bs")
# Tensors of more elements are weights, whose values do not matter for shapes.
_SMALL = 1024


def inputs_of(model: Any) -> list[Any]:
    """Return the inputs of a model that are not constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def input_shapes(path: Any, model: Any, sizes: Sequence[Sequence[int]]) -> Iterator[Mapping[str, Shape]]:
    """Yield the shapes of the inputs of a model at which it may run.

    Args:
        path: Path of the model, for messages.
        model: The model.
        sizes: Shapes of its inputs in their order; those of single numbers may be left out. If empty, the declared ones
            are used, with a batch of size 1 and other sizes of open axes each time; those of the same name agree.

    Raises:
        LrzipError: The model declares other inputs.
    """
    inputs = inputs_of(model)
    if sizes:
        numbers = [value for value in inputs if _dimensions(value) == []]
        given = inputs if len(sizes) == len(inputs) else [value for value in inputs if value not in numbers]
        _check(path, given, sizes)
        yield {value.name: () for value in numbers} | {v.name: tuple(s) for v, s in zip(given, sizes, strict=True)}
        return
    tried: list[Mapping[str, Shape]] = []
    for size in OPEN_SIZES:
        named: dict[str, int] = {}
        shapes = {value.name: _filled(_dimensions(value), size, named) for value in inputs}
        if shapes not in tried:
            tried.append(shapes)
            yield shapes


def with_inputs(model: Any, shapes: Mapping[str, Shape]) -> Any:
    """Return a copy of a model that declares inputs of given shapes, and no shapes of other values or large tensors."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in inputs_of(fixed):
        if value.name in shapes and value.type.HasField("tensor_type"):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in shapes[value.name])
    _forget(fixed.graph)
    return fixed


def infer(model: Any) -> Any:
    """Return the graph of a model with the shapes that onnx can infer; without them if it fails."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # onnx raises exceptions of many classes for models that it rejects
        return model.graph


def shapes_in(graph: Any) -> dict[str, Shape]:
    """Return the known shapes of a graph's own values and constants, by name."""
    found: dict[str, Shape] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dimensions = _dimensions(value)
        if dimensions is not None and all(isinstance(size, int) for size in dimensions):
            found[value.name] = tuple(size for size in dimensions if isinstance(size, int))
    return found | constants_in(graph)


def constants_in(graph: Any) -> dict[str, Shape]:
    """Return the shapes of the initializers and Constant nodes of a graph itself, by name."""
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            values = onnx.helper.get_attribute_value(attribute)
            single = attribute.name in ("value_float", "value_int", "value_string")
            found[node.output[0]] = (
                tuple(values.dims) if attribute.name == "value" else () if single else (len(values),)
            )
    return found


def _dimensions(value: Any) -> list[int | str | None] | None:
    """Return the declared sizes of a value: a number, the name of an open axis or None; None without a shape.

    Negative sizes stand for open axes, in the files of some exporters; so do zeros of inputs.
    """
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    sizes: list[int | str | None] = []
    for dimension in value.type.tensor_type.shape.dim:
        known = dimension.HasField("dim_value") and dimension.dim_value >= 0
        sizes.append(dimension.dim_value if known else dimension.dim_param or None)
    return sizes


def _filled(dimensions: Sequence[int | str | None] | None, size: int, named: dict[str, int]) -> Shape:
    """Return declared sizes with a size for each open axis, that of the batch with size 1."""
    batch = _batch_axis(dimensions or ())
    filled = []
    for axis, declared in enumerate(dimensions or ()):
        chosen = 1 if axis == batch else size
        if isinstance(declared, str):
            chosen = named.setdefault(declared, chosen)
        filled.append(declared if isinstance(declared, int) and declared > 0 else chosen)
    return tuple(filled)


def _batch_axis(dimensions: Sequence[int | str | None]) -> int:
    """Return the axis of the batch: one that is named so, the second one of a recurrent state, or the first one."""
    named = next((axis for axis, name in enumerate(dimensions) if isinstance(name, str) and _is_batch(name)), None)
    if named is not None:
        return named
    is_open = [not isinstance(size, int) or size == 0 for size in dimensions]
    return 1 if is_open == [False, True, False] and dimensions[0] != 1 else 0


def _is_batch(name: str) -> bool:
    return "batch" in name.lower() or name.lower() in _BATCH_NAMES


def _check(path: Any, inputs: Sequence[Any], sizes: Sequence[Sequence[int]]) -> None:
    if len(sizes) != len(inputs):
        names = ", ".join(f"`{value.name}`" for value in inputs)
        raise LrzipError(
            f"`{path}` takes {len(inputs)} inputs, {names}; give `input_shapes=SIZES` for each, in this order."
        )
    for value, given in zip(inputs, sizes, strict=True):
        dimensions = _dimensions(value)
        fits = dimensions is None or len(dimensions) == len(given)
        if not fits or any(
            isinstance(d, int) and d not in (0, g) for d, g in zip(dimensions or (), given, strict=False)
        ):
            declared = ", ".join("?" if size is None else str(size) for size in dimensions or ())
            raise LrzipError(f"`{path}` declares its input `{value.name}` as ({declared}), not {tuple(given)}.")


def _forget(graph: Any) -> None:
    """Remove the shapes of all values but the inputs, to be inferred again, and the data of large tensors."""
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for tensor in graph.initializer:
        if len(tensor.raw_data) > _SMALL or len(tensor.float_data) > _SMALL:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _forget(body)

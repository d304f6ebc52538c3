"""Observe the inputs of the layers of an ONNX model, by running it in onnxruntime with them as further outputs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from lrzip.core.activations import Inputs, Window
from lrzip.core.errors import LrzipError
from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Observe
from lrzip.formats.onnx.run import run, start

_PROTOBUF_LIMIT = 1 << 31


def observe_model(
    path: Path, nbytes: int, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe
) -> None:
    """Run a model on batches and pass the inputs of its layers to an observer.

    Layers within branches and loops are not observed.

    Args:
        path: Path of the model.
        nbytes: Size of the model with its external data.
        layers: Layers to observe.
        batches: Positional or named arguments. They are split into the batch size that the model declares, if any.
        observer: Function that receives the name and the inputs of a layer, once per call of the layer.

    Raises:
        LrzipError: The model is too large to be run this way, or does not take the arguments.
    """
    if nbytes >= _PROTOBUF_LIMIT:
        raise LrzipError(f"`{path}` is too large to calibrate: onnxruntime takes 2 GB with outputs added. Use PyTorch.")
    model = onnx.load(str(path.absolute()))
    calls = list(_calls(model.graph, {layer.weight.name: layer for layer in layers}))
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    wanted = list(dict.fromkeys(name for _, _, name in calls))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    session = start(model.SerializeToString())
    computed = [name for name in wanted if name not in {value.name for value in session.get_inputs()}]
    for arguments in batches:
        for feed in _feeds(path, session.get_inputs(), arguments):
            values = {**feed, **run(session, computed, feed)} if computed else feed
            for layer, node, name in calls:
                observer(layer.name, _inputs(layer, node, torch.from_numpy(np.asarray(values[name]))))


def _calls(graph: Any, layers: Mapping[str, Layer]) -> Iterator[tuple[Layer, Any, str]]:
    """Yield the layers of a graph with their nodes and the names of their inputs."""
    constants = {node.output[0]: node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        for index, name in enumerate(node.input[:2]):
            layer = layers.get(constants.get(name, name))
            if layer:
                yield layer, node, node.input[1 - index]


def _inputs(layer: Layer, node: Any, x: Tensor) -> Inputs:
    """Return the inputs of a node for each group of its weight."""
    if layer.kind.is_transposed_convolution:
        return Inputs(layer.kind, (x,))
    if layer.kind.is_convolution:
        return Inputs(layer.kind, tuple(x.chunk(layer.groups, 1)), _window(node, layer.weight.shape[2:], x.shape[2:]))
    weight_first = node.op_type == "MatMul" and layer.kind is LINEAR  # W x, with positions in columns
    return Inputs(layer.kind, (x.mT if weight_first else x,))


def _window(node: Any, kernel: Sequence[int], sizes: Sequence[int]) -> Window:
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    axes = len(kernel)
    strides, dilations = (tuple(given.get(name, [1] * axes)) for name in ("strides", "dilations"))
    pads = given.get("pads", [0] * (2 * axes))
    padding = list(zip(pads[:axes], pads[axes:], strict=True))
    mode = given.get("auto_pad", b"NOTSET").decode()
    if mode.startswith("SAME"):
        padding = []
        for size, width, step, gap in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((-(-size // step) - 1) * step + gap * (width - 1) + 1 - size, 0)
            less, more = total // 2, total - total // 2
            padding.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return Window(tuple(kernel), strides, padding, dilations)


def _feeds(path: Path, inputs: Sequence[Any], arguments: Arguments) -> Iterator[dict[str, Any]]:
    """Yield the inputs of a model, in pieces of the batch size that it declares."""
    args, kwargs = arguments
    named = dict(zip([value.name for value in inputs], args, strict=False)) | kwargs
    if len(args) > len(inputs) or set(named) != {value.name for value in inputs}:
        names = ", ".join(f"`{value.name}`" for value in inputs)
        raise LrzipError(f"`{path}` takes {names}, and the samples have {len(args) + len(kwargs)} inputs.")
    samples = len(next(iter(named.values())))
    declared = [value.shape[0] for value in inputs if value.shape]
    size = next((size for size in declared if isinstance(size, int)), samples)
    for start_ in range(0, samples // size * size, size):
        yield {
            value.name: np.ascontiguousarray(named[value.name][start_ : start_ + size].numpy()).astype(_dtype(value))
            for value in inputs
        }


def _dtype(value: Any) -> str:
    """Return the name of NumPy's dtype for a type of onnxruntime such as `tensor(float)`."""
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)

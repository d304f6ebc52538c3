"""Observe the inputs of the layers of an ONNX model, by running it in onnxruntime with them as further outputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from lrzip.core.activations import Inputs, Window
from lrzip.core.errors import LimitReached, LrzipError, NotCompared
from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Layer
from lrzip.core.limited import stream_limited
from lrzip.core.moments import Arguments, Observe
from lrzip.formats.onnx.record import record
from lrzip.formats.onnx.run import limits_of, require_runtime
from lrzip.formats.onnx.samples import as_sample, nbytes_of

_PROTOBUF_LIMIT = 1 << 31
_SECONDS = 24 * 3600.0
"""Calibration data is of any size, and its run can be interrupted."""


def observe_model(
    path: Path, nbytes: int, layers: Mapping[str, Layer], batches: Sequence[Arguments], observer: Observe
) -> None:
    """Run a model on batches and pass the inputs of its layers to an observer.

    Layers within branches and loops are not observed.

    Args:
        path: Path of the model.
        nbytes: Size of the model with its external data.
        layers: Layers to observe, by the names of the values that nodes take as weights.
        batches: Positional or named arguments. They are split into the batch size that the model declares, if any.
        observer: Function that receives the name and the inputs of a layer, once per call of the layer.

    Raises:
        LrzipError: The model is too large to be run this way, or does not take the arguments.
    """
    if nbytes >= _PROTOBUF_LIMIT:
        raise LrzipError(f"`{path}` is too large to calibrate: onnxruntime takes 2 GB with outputs added. Use PyTorch.")
    try:
        require_runtime()
    except NotCompared as error:
        raise LrzipError(f"Running the model needs onnxruntime: {error}") from error
    model = onnx.load(str(path.absolute()), load_external_data=False)
    calls = list(_calls(model.graph, layers))
    wanted = list(dict.fromkeys(name for _, _, name in calls))
    samples = [as_sample(arguments) for arguments in batches]
    limits = replace(limits_of(nbytes + nbytes_of(samples)), seconds=_SECONDS)
    try:
        for values in stream_limited(record, path, wanted, samples, torch.get_num_threads(), limits=limits):
            for layer, node, name in calls:
                observer(layer.name, _inputs(layer, node, torch.from_numpy(values[name])))
    except LimitReached as error:
        raise LrzipError(
            f"The run of `{path}` on the samples was stopped, since {error}. Take fewer: `batch_size=1`."
        ) from error
    except RuntimeError as error:
        raise ValueError(str(error).removeprefix("ValueError: ")) from error


def _calls(graph: Any, layers: Mapping[str, Layer]) -> Iterator[tuple[Layer, Any, str]]:
    """Yield the layers of a graph with their nodes and the names of their inputs."""
    for node in graph.node:
        for index, name in enumerate(node.input[:2]):
            layer = layers.get(name)
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

"""The write side of ONNX: the source's model, read again, with a node in front of each node that is replaced."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx  # noqa: TID251  (this is the ONNX format)
import onnx_ir as ir
from torch import Tensor

from lrzip.errors import LrzipError, OutputExists, UnsupportedCheckpoint
from lrzip.files.atomic import atomic_files
from lrzip.formats.onnx_data import DataFile, chunks_of, spec_of
from lrzip.formats.onnx_graph import SCOPES, constants_of, graphs_of, integer, tensor_of
from lrzip.formats.onnx_model import OnnxFile, load_model, names_of, nodes_of
from lrzip.formats.safetensors import tensor_bytes
from lrzip.layers import Layer, TensorSpec
from lrzip.plan import Entry

# Protobuf messages end at 2 GiB; what is not tensors takes a part of it.
_PROTOBUF_LIMIT = 2_000_000_000
# Smaller tensors stay in the model, where shape inference can see them.
_EXTERNAL_FROM = 1024
_SCOPES = (SCOPES, "namespace")
_GEOMETRY = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


@contextmanager
def write_model(destination: Path, source: OnnxFile, layout: Sequence[Entry]) -> Iterator["OnnxWriter"]:
    """Write a model and its external data, if it has some; both appear when all went well."""
    external = bool(source.data_files) or sum(entry.spec.nbytes for entry in layout) > _PROTOBUF_LIMIT
    data = _data_path(destination, source)
    if external and any(data.exists() and data.samefile(file) for file in source.data_files):
        raise OutputExists(
            f"`{destination}` would overwrite `{data}`, the data of the input. Choose another with `-o`."
        )
    if external and data.exists() and not destination.exists():
        raise OutputExists(f"`{data}`, where the tensors of `{destination}` go, exists. Choose another with `-o`.")
    with atomic_files(destination) as folder:
        writer = OnnxWriter(source, layout, DataFile(folder / data.name) if external else None)
        try:
            yield writer
            model = writer.finished()
        finally:
            writer.close()
        _save(model, folder / destination.name)
        _check(folder / destination.name, source)


class OnnxWriter:
    """Takes the tensors of chains and puts them into a copy of the source's model."""

    def __init__(self, source: OnnxFile, layout: Sequence[Entry], data: DataFile | None) -> None:
        self._source = source
        self._data = data
        self._model = load_model(source.path)
        self._constants = constants_of(self._model)
        self._taken = names_of(self._model)
        self._entries = {entry.spec.name: entry for entry in layout if not entry.copied}
        self._layers = {item.weight.name: item for item in source.layers() if isinstance(item, Layer)}
        self._stages: dict[str, list[ir.Value]] = {}
        for entry in self._entries.values():
            weight = self._layers[entry.origin].weight
            if entry.spec.dtype != weight.dtype:
                raise LrzipError(
                    f"`{weight.name}` is {weight.dtype}, and so are the inputs of its nodes. Leave out `--dtype`."
                )

    def put(self, name: str, tensor: Tensor) -> None:
        """Take one computed tensor; after the last of a layer its nodes are replaced."""
        origin = self._entries[name].origin
        layer, weight = self._layers[origin], self._constants[origin]
        matrix = tensor.mT if layer.kind == "linear_transposed" else tensor
        spec = TensorSpec(name, tuple(matrix.shape), layer.weight.dtype, matrix.nbytes)
        stages = self._stages.setdefault(origin, [])
        stages.append(_initializer(weight, self._stored(spec, tensor_of(weight).dtype, tensor_bytes(matrix))))
        if len(stages) == sum(entry.origin == origin for entry in self._entries.values()):
            self._replace(weight, stages)

    def finished(self) -> ir.Model:
        """Return the model, with the external data it still needs copied."""
        if self._data:
            for graph in graphs_of(self._model):
                for value in graph.initializers.values():
                    if value.const_value is not None:
                        value.const_value = self._moved(value.const_value)
            for node in nodes_of(self._model):
                for name, attribute in list(node.attributes.items()):
                    if isinstance(attribute.value, ir.ExternalTensor):
                        node.attributes[name] = ir.AttrTensor(name, self._moved(attribute.value))
        return self._model

    def close(self) -> None:
        """Close the file of external data."""
        if self._data:
            self._data.close()

    def _stored(self, spec: TensorSpec, dtype: ir.DataType, data: memoryview) -> ir.TensorProtocol:
        if self._data:
            return self._data.append(spec, dtype, iter([data]))
        proto = onnx.TensorProto(name=spec.name, dims=spec.shape, data_type=dtype.value, raw_data=bytes(data))
        return ir.serde.TensorProtoTensor(proto)

    def _moved(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """Return a tensor in the file of external data, if it belongs there and is not there yet."""
        assert self._data
        external = isinstance(tensor, ir.ExternalTensor)
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) == self._data.path:
            return tensor
        if not external and (tensor.dtype == ir.DataType.STRING or tensor.nbytes < _EXTERNAL_FROM):
            return tensor
        chunks = chunks_of(self._source.path, tensor)
        return self._data.append(spec_of(str(tensor.name), tensor), tensor.dtype, chunks)

    def _replace(self, weight: ir.Value, stages: Sequence[ir.Value]) -> None:
        for usage in tuple(weight.uses()):
            self._split(usage.node, usage.idx, *stages)
        producer, graph = weight.producer(), weight.graph
        if producer is not None:
            assert producer.graph is not None
            producer.graph.remove(producer, safe=True)
        elif graph is not None:
            del graph.initializers[str(weight.name)]

    def _split(self, node: ir.Node, index: int, first: ir.Value, second: ir.Value) -> None:
        """Put a node with the first weight in front of a node, which gets the second and keeps its name and outputs."""
        position = 1 - index if node.op_type == "MatMul" else 0
        inputs = [node.inputs[0], node.inputs[1]]
        inputs[position], inputs[1 - position] = node.inputs[position], first
        front = ir.Node(
            node.domain,
            "Conv" if node.op_type == "ConvTranspose" else node.op_type,
            inputs,
            _front_attributes(node),
            name=self._new_name(node.name or node.op_type),
            metadata_props={key: node.metadata_props[key] for key in _SCOPES if key in node.metadata_props},
        )
        (between,) = front.outputs
        between.name = self._new_name(str(node.outputs[0].name))
        between.type = node.outputs[0].type
        assert node.graph is not None
        node.graph.insert_before(node, front)
        node.replace_input_with(position, between)
        node.replace_input_with(1 - position, second)
        if node.op_type == "Conv":
            for name in _GEOMETRY:
                node.attributes.pop(name, None)

    def _new_name(self, name: str) -> str:
        number = 0
        while f"{name}.{number}" in self._taken:
            number += 1
        self._taken.add(f"{name}.{number}")
        return f"{name}.{number}"


def _front_attributes(node: ir.Node) -> list[ir.Attr]:
    """Return the attributes of the first of two nodes: what a factor shares with the whole."""
    if node.op_type == "Conv":
        return list(node.attributes.values())
    if node.op_type == "Gemm" and integer(node, "transB", 0):
        return [ir.AttrInt64("transB", 1)]
    return []


def _initializer(weight: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor in the graph that a weight belongs to."""
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    node = weight.producer()
    graph = node.graph if node else weight.graph
    assert isinstance(graph, ir.Graph)
    graph.register_initializer(value)
    return value


def _data_path(destination: Path, source: OnnxFile) -> Path:
    """Return where external data goes: named after the output as that of the input is after the input."""
    names = [file.name for file in source.data_files]
    ending = names[0].removeprefix(source.path.name) if len(names) == 1 else ""
    return destination.with_name(destination.name + (ending if ending not in ("", *names) else ".data"))


def _save(model: ir.Model, path: Path) -> None:
    try:
        data = ir.to_proto(model).SerializeToString(deterministic=True)
    except ValueError as error:
        raise LrzipError(f"The graph of `{path.name}` is over the 2 GiB that a protobuf message can hold.") from error
    path.write_bytes(data)


def _check(path: Path, source: OnnxFile) -> None:
    """Let onnx's own checker look at the result, and at the source where it finds something."""
    complaint = _complaint(path)
    if complaint and (before := _complaint(source.path)):
        raise UnsupportedCheckpoint(f"`{source.path}` is no valid ONNX model: {before}.")
    if complaint:
        raise LrzipError(f"`{path.name}` would not be a valid ONNX model: {complaint}.")


def _complaint(path: Path) -> str | None:
    try:
        onnx.checker.check_model(str(path.absolute()))
    except Exception as error:
        return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return None

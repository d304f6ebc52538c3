"""The write side of ONNX: the source's model, read again, with nodes in front of each that is replaced."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import Tensor

from lrzip.core.chains import kernel_stage
from lrzip.core.errors import LrzipError, OutputExists, UnsupportedCheckpoint, one_line
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.plan import Entry
from lrzip.formats.files.atomic import atomic_files
from lrzip.formats.files.stream import tensor_bytes
from lrzip.formats.onnx.data import DataFile, chunks_of, spec_of
from lrzip.formats.onnx.graph import SCOPES, constants_of, graphs_of, tensor_of
from lrzip.formats.onnx.model import OnnxFile, load_model, names_of, nodes_of, root_cause

# Protobuf messages end at 2 GiB; what is not tensors takes a part of it.
_PROTOBUF_LIMIT = 2_000_000_000
# Of which opset on Gemm takes no bias.
_GEMM_WITHOUT_BIAS = 11
# Smaller tensors stay in the model, where shape inference can see them.
_EXTERNAL_FROM = 1024
_SCOPES = (SCOPES, "namespace")
_GEOMETRY = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


@contextmanager
def write_model(destination: Path, source: OnnxFile, layout: Sequence[Entry]) -> Iterator["OnnxWriter"]:
    """Write a model and its external data, if it has some; both appear when all went well."""
    external = bool(source.data_files) or sum(entry.spec.nbytes for entry in layout) > _PROTOBUF_LIMIT
    data = _data_path(destination, source)
    for path in (destination, data):
        if path.exists() and any(path.samefile(file) for file in source.data_files):
            raise OutputExists(
                f"`{destination}` would overwrite `{path}`, data of the input. Choose another with `-o`."
            )
    if external and (data.is_dir() or (data.exists() and not destination.exists())):
        raise OutputExists(f"`{data}`, where the tensors of `{destination}` go, exists. Choose another with `-o`.")
    with atomic_files(destination) as folder:
        writer = OnnxWriter(source, layout, DataFile(folder / data.name) if external else None)
        try:
            yield writer
            content = writer.finish()
        finally:
            writer.close()
        (folder / destination.name).write_bytes(content)
        _check(folder / destination.name, source)
        source.check_run(folder / destination.name, destination)


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
        self._stages: dict[str, list[ir.TensorProtocol]] = {}
        for entry in self._entries.values():
            weight = self._layers[entry.origin].weight
            if entry.spec.dtype != weight.dtype:
                raise LrzipError(
                    f"`{weight.name}` is {weight.dtype}, and so are the inputs of its nodes. Leave out `--dtype`."
                )

    def put(self, name: str, tensor: Tensor) -> None:
        """Take one computed tensor."""
        origin = self._entries[name].origin
        layer, weight = self._layers[origin], self._constants[origin]
        matrix = tensor.mT if layer.kind == "linear_transposed" else tensor
        spec = TensorSpec(name, tuple(matrix.shape), layer.weight.dtype, matrix.nbytes)
        stored = self._stored(spec, tensor_of(weight).dtype, tensor_bytes(matrix))
        self._stages.setdefault(origin, []).append(stored)

    def finish(self) -> bytes:
        """Return the message of the model, after replacing nodes and copying the external data it still needs.

        Raises:
            LrzipError: The source is damaged in a way that shows only now, or the message is too large.
        """
        try:
            for origin, stages in self._stages.items():
                self._replace(self._constants[origin], stages)
            if self._data:
                self._move_all()
            return bytes(ir.to_proto(self._model).SerializeToString(deterministic=True))
        except (LrzipError, OSError, MemoryError):
            raise
        except Exception as error:
            raise UnsupportedCheckpoint(f"`{self._source.path}` cannot be rewritten: {root_cause(error)}.") from error

    def _move_all(self) -> None:
        for graph in graphs_of(self._model, functions=True):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = self._moved(value.const_value)
        for node in nodes_of(self._model):
            for name, attribute in list(node.attributes.items()):
                held = attribute.value
                if isinstance(held, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, self._moved(held))
                elif isinstance(held, Sequence) and any(isinstance(tensor, ir.ExternalTensor) for tensor in held):
                    node.attributes[name] = ir.AttrTensors(name, [self._moved(tensor) for tensor in held])

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

    def _replace(self, weight: ir.Value, stages: Sequence[ir.TensorProtocol]) -> None:
        producer, graph = weight.producer(), _graph_of(weight)
        values = [_registered(graph, stage) for stage in stages]
        for usage in tuple(weight.uses()):
            self._split(usage.node, usage.idx, values)
        if producer is not None:
            graph.remove(producer, safe=True)
        else:
            del graph.initializers[str(weight.name)]

    def _split(self, node: ir.Node, index: int, stages: Sequence[ir.Value]) -> None:
        """Put nodes with the first weights in front of a node, which gets the last and keeps its name and outputs."""
        position = 1 - index if node.op_type == "MatMul" else 0
        kernel = kernel_stage([_sizes(stage) for stage in stages])
        for number, stage in enumerate(stages[:-1]):
            front = self._front(node, position, stage, has_kernel=number == kernel)
            node.replace_input_with(position, front.outputs[0])
        node.replace_input_with(1 - position, stages[-1])
        if node.op_type == "Conv":  # the last stage of every chain of convolutions is pointwise
            for name in _GEOMETRY:
                node.attributes.pop(name, None)

    def _front(self, node: ir.Node, position: int, weight: ir.Value, *, has_kernel: bool) -> ir.Node:
        """Insert a node before another, which applies a weight to what that one is applied to."""
        assert isinstance(node.graph, ir.Graph)
        inputs = [node.inputs[position], weight] if position == 0 else [weight, node.inputs[position]]
        if node.op_type == "Gemm" and self._model.opset_imports.get("", 0) < _GEMM_WITHOUT_BIAS:
            inputs.append(self._zero(node.graph, weight))
        front = ir.Node(
            node.domain,
            "Conv" if node.op_type == "ConvTranspose" else node.op_type,
            inputs,
            _front_attributes(node, has_kernel=has_kernel),
            name=self._new_name(node.name or node.op_type),
            metadata_props={key: node.metadata_props[key] for key in _SCOPES if key in node.metadata_props},
        )
        (between,) = front.outputs
        between.name = self._new_name(str(node.outputs[0].name))
        between.type = node.outputs[0].type
        node.graph.insert_before(node, front)
        return front

    def _zero(self, graph: ir.Graph, like: ir.Value) -> ir.Value:
        """Return a new bias of zeros."""
        assert like.const_value is not None
        dtype, name = like.const_value.dtype, self._new_name("zero")
        proto = onnx.TensorProto(name=name, dims=(1,), data_type=dtype.value, raw_data=bytes(dtype.bitwidth // 8))
        return _registered(graph, ir.serde.TensorProtoTensor(proto))

    def _new_name(self, name: str) -> str:
        number = 0
        while f"{name}.{number}" in self._taken:
            number += 1
        self._taken.add(f"{name}.{number}")
        return f"{name}.{number}"


def _front_attributes(node: ir.Node, *, has_kernel: bool) -> list[ir.Attr]:
    """Return the attributes of a node in front of another: what a factor shares with the whole."""
    if node.op_type == "Conv":
        return [attribute for name, attribute in node.attributes.items() if has_kernel or name not in _GEOMETRY]
    if node.op_type == "Gemm":
        return [node.attributes[name] for name in ("transB", "broadcast") if name in node.attributes]
    return []


def _sizes(weight: ir.Value) -> tuple[int, ...]:
    """Return the shape of a constant."""
    assert weight.const_value is not None
    return tuple(int(size) for size in weight.const_value.shape.numpy())


def _graph_of(weight: ir.Value) -> ir.Graph:
    """Return the graph that a constant belongs to."""
    node = weight.producer()
    graph = node.graph if node else weight.graph
    assert isinstance(graph, ir.Graph)
    return graph


def _registered(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Return a new initializer of a graph."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _data_path(destination: Path, source: OnnxFile) -> Path:
    """Return where external data goes: named after the output as that of the input is after the input."""
    names = [file.name for file in source.data_files]
    ending = names[0].removeprefix(source.path.name) if len(names) == 1 else ""
    return destination.with_name(destination.name + (ending if ending not in ("", *names) else ".data"))


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
        return one_line(error, 200)
    return None

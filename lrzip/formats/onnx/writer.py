"""Write side of ONNX: the model of the source is read again, and the nodes of layers are replaced in it."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import Tensor

from lrzip.core.errors import LrzipError, OutputExists, UnsupportedCheckpoint
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.structure import Structure
from lrzip.formats.files.atomic import atomic_files
from lrzip.formats.files.stream import tensor_bytes
from lrzip.formats.onnx.check import complaint_of
from lrzip.formats.onnx.data import DataFile, chunks_of, own_data, spec_of
from lrzip.formats.onnx.folding import Constant
from lrzip.formats.onnx.graph import constants_of, graphs_of, names_of, nodes_of
from lrzip.formats.onnx.load import load_model, root_cause
from lrzip.formats.onnx.model import OnnxFile
from lrzip.formats.onnx.nodes import registered, replace_use

# Limit of the tensors in a protobuf message, which is at most 2 GiB in total.
_PROTOBUF_LIMIT = 2_000_000_000
_DATA = "data"  # name of the external data while it is written
# Smaller tensors stay in the model, where shape inference can see them.
_EXTERNAL_FROM = 1024


@contextmanager
def write_model(destination: Path, source: OnnxFile, layout: Sequence[Entry]) -> Iterator["OnnxWriter"]:
    """Write a model, and its external data if it has some; they appear when the context exits without an error.

    Args:
        destination: Path of the model; the external data is written beside it.
        source: Model to rewrite.
        layout: Every tensor of the output.

    Raises:
        OutputExists: A file of the output exists and does not belong to it.
        LrzipError: The output is not valid, or does not run although the source does.
    """
    external = bool(source.data_files) or sum(entry.spec.nbytes for entry in layout) > _PROTOBUF_LIMIT
    if destination.exists() and any(destination.samefile(file) for file in source.data_files):
        raise OutputExists(f"`{destination}` is data of the input. Choose another with `output=PATH`.")

    def obsolete(current: Collection[Path]) -> set[Path]:
        kept = {*current, *(file.resolve() for file in source.data_files)}
        return {path for path in own_data(destination) if path.absolute() not in kept and path.resolve() not in kept}

    with atomic_files(destination, obsolete) as folder:
        writer = OnnxWriter(source, layout, DataFile(folder / _DATA) if external else None)
        try:
            yield writer
            content = writer.finish(destination.name, _ending(source))
        finally:
            writer.close()
        (folder / destination.name).write_bytes(content)
        _check(folder / destination.name, source)
        source.check_run(folder / destination.name, destination)


class OnnxWriter:
    """Collects the tensors of structures, and replaces layers by them in a copy of the source's model."""

    def __init__(self, source: OnnxFile, layout: Sequence[Entry], data: DataFile | None) -> None:
        self._source = source
        self._data = data
        self._model, _ = load_model(source.path)
        self._constants = constants_of(self._model)
        self._taken = names_of(self._model)
        self._entries = {entry.spec.name: entry for entry in layout if not entry.copied}
        self._layers = {item.weight.name: item for item in source.layers() if isinstance(item, Layer)}
        self._tensors: dict[str, list[ir.TensorProtocol]] = {}
        for entry in self._entries.values():
            dtype = source.tensors()[entry.origin].dtype
            if entry.spec.dtype != dtype and entry.spec.is_floating_point:
                raise LrzipError(
                    f"`{entry.origin}` is {dtype}, and so are the inputs of its nodes. "
                    f"Leave out `dtype={entry.spec.dtype}`."
                )

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one computed tensor."""
        entry = self._entries[name]
        # Stages are linear layers with weights (out, in) also where the nodes of the layer take (in, out).
        is_transposed = entry.structure is not None and self._layers[entry.origin].kind.is_stored_transposed
        stored = tensor.mT if is_transposed and tensor.dim() > 1 else tensor
        dtype = self._constants[entry.origin].dtype if tensor.is_floating_point() else ir.DataType.INT64
        spec = TensorSpec(name, tuple(stored.shape), entry.spec.dtype, stored.nbytes)
        self._tensors.setdefault(entry.origin, []).append(self._stored(spec, dtype, tensor_bytes(stored)))

    def finish(self, name: str, ending: str) -> bytes:
        """Replace the nodes of layers, copy the external data that is still used, and return the serialized model.

        Args:
            name: Name of the model's file.
            ending: End of the name of the file of external data.

        Raises:
            LrzipError: The source turns out to be damaged, or the message is too large.
        """
        try:
            structures = {entry.origin: entry.structure for entry in self._entries.values() if entry.structure}
            for origin, structure in structures.items():
                self._replace(self._constants[origin], structure, self._tensors[origin])
            for origin in self._tensors.keys() - structures.keys():
                self._resize(self._constants[origin], *self._tensors[origin])
            if self._data:
                self._move_all()
            model = ir.to_proto(self._model)
            if self._data:
                self._data.finish(model, name, ending)
            return bytes(model.SerializeToString(deterministic=True))
        except (LrzipError, OSError, MemoryError):
            raise
        except Exception as error:
            raise UnsupportedCheckpoint(f"`{self._source.path}` cannot be rewritten: {root_cause(error)}.") from error

    def _move_all(self) -> None:
        """Move all large tensors of the model to the file of external data."""
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
        """Move a tensor to the file of external data, unless it is there or too small, and return it."""
        assert self._data
        external = isinstance(tensor, ir.ExternalTensor)
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) == self._data.path:
            return tensor
        if not external and (tensor.dtype == ir.DataType.STRING or tensor.nbytes < _EXTERNAL_FROM):
            return tensor
        chunks = chunks_of(self._source.path, tensor)
        return self._data.append(spec_of(str(tensor.name), tensor), tensor.dtype, chunks)

    def _resize(self, constant: Constant, tensor: ir.TensorProtocol) -> None:
        """Give a constant another tensor, and forget the shapes of values that were inferred from it."""
        producer = constant.value.producer()
        if constant.chain:
            (value,) = self._values(constant, [tensor])
            for use in constant.uses:
                use.node.replace_input_with(use.position, value)
            self._drop(constant)
        elif producer is not None:
            producer.attributes["value"] = ir.AttrTensor("value", tensor)
        else:
            constant.value.const_value, constant.value.shape = tensor, ir.Shape(tensor.shape.numpy())
        outputs = {id(value) for graph in graphs_of(self._model) for value in graph.outputs}
        for node in nodes_of(self._model):
            for value in node.outputs:
                if id(value) not in outputs:
                    value.shape = None

    def _replace(self, weight: Constant, structure: Structure, tensors: Sequence[ir.TensorProtocol]) -> None:
        """Replace each node that uses a weight by the nodes of a structure."""
        values = self._values(weight, tensors)
        opset = self._model.opset_imports.get("", 0)
        for use in weight.uses:
            replace_use(use.node, use.position, structure, values, opset, self._new_name)
        self._drop(weight)

    def _values(self, weight: Constant, tensors: Sequence[ir.TensorProtocol]) -> list[ir.Value]:
        """Return new initializers, cast to the dtype of the uses of the weight that they replace."""
        graph = _graph_of(weight.value)
        values = [registered(graph, tensor) for tensor in tensors]
        if weight.dtype == weight.used_as:
            return values
        return [self._cast(graph, value, weight) if value.dtype == weight.dtype else value for value in values]

    def _cast(self, graph: ir.Graph, value: ir.Value, weight: Constant) -> ir.Value:
        node = ir.Node(
            "", "Cast", [value], [ir.AttrInt64("to", weight.used_as.value)], name=self._new_name(f"{value.name}.cast")
        )
        (output,) = node.outputs
        output.name, output.type, output.shape = node.name, ir.TensorType(weight.used_as), value.shape
        graph.insert_before(graph[0], node)
        return output

    def _drop(self, constant: Constant) -> None:
        """Remove a constant that is no longer used, and the nodes behind it with their other constants."""
        left = [constant.value]
        for node in reversed(constant.chain):
            left += [value for value in node.inputs[1:] if value is not None]
            _graph_of_node(node).remove(node, safe=True)
        for value in left:
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            producer = value.producer()
            if producer is not None and producer.graph is not None:
                _graph_of_node(producer).remove(producer, safe=True)
            elif value.is_initializer():
                del _graph_of(value).initializers[str(value.name)]

    def _new_name(self, name: str) -> str:
        number = 0
        while f"{name}.{number}" in self._taken:
            number += 1
        self._taken.add(f"{name}.{number}")
        return f"{name}.{number}"


def _graph_of(value: ir.Value) -> ir.Graph:
    """Return the graph that a constant belongs to."""
    node = value.producer()
    graph = node.graph if node else value.graph
    assert isinstance(graph, ir.Graph)
    return graph


def _graph_of_node(node: ir.Node) -> ir.Graph | ir.Function:
    assert node.graph is not None
    return node.graph


def _ending(source: OnnxFile) -> str:
    """Return the end of the name of external data, which follows the name of the model as in the source."""
    names = [file.name for file in source.data_files]
    found = re.fullmatch(re.escape(source.path.name) + r"(?:\.[0-9a-f]{16})?([._]\w+)", names[0] if names else "")
    return found[1] if found and len(names) == 1 else ".data"


def _check(path: Path, source: OnnxFile) -> None:
    """Check the output with onnx's checker, unless that finds a fault in the source too.

    Raises:
        LrzipError: Only the output is not valid.
    """
    complaint = complaint_of(path)
    if complaint and not source.complaint:
        raise LrzipError(f"`{path.name}` would not be a valid ONNX model: {complaint}.")

"""Read side of ONNX: an open model, whose external data is read one tensor at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from lrzip.core.costs import Multiplications, Timing
from lrzip.core.errors import NotCompared, UnsupportedCheckpoint, UsageError, one_line
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.moments import Arguments, Observe
from lrzip.core.report import Comparison
from lrzip.core.stored import DenseLayer
from lrzip.formats import FORMATS
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.onnx.compare import compare, time
from lrzip.formats.onnx.costs import Subject, count
from lrzip.formats.onnx.data import chunks_of, external_file, spec_of
from lrzip.formats.onnx.feeds import Given
from lrzip.formats.onnx.functions import check_functions
from lrzip.formats.onnx.graph import constants_of, find_bias, find_layers, graphs_of, tensor_of
from lrzip.formats.onnx.observe import observe_model
from lrzip.formats.onnx.ranges import index_limits
from lrzip.formats.onnx.samples import as_sample
from lrzip.networks.architecture import Architecture
from lrzip.networks.inputs import InputShape


class OnnxFile:
    """An open ONNX model with its external data."""

    format = "onnx"
    key = ""
    others: Sequence[str] = ("graph",)
    dense_layers: Mapping[str, DenseLayer] | None = None
    knows_layers = True
    is_rewritable = True
    snapshot = Snapshot()

    def __init__(self, path: Path) -> None:
        self.path = path
        model = load_model(path)
        files = files_of(path, model)
        self.data_files = files[1:]
        self.nbytes = sum(file.stat().st_size for file in files)
        self.metadata: Mapping[str, str] = dict(model.metadata_props)
        constants = constants_of(model)
        self._stored = {name: tensor_of(value) for name, value in constants.items()}
        self._specs = {name: spec_of(name, tensor) for name, tensor in self._stored.items()}
        self._sizes: Sequence[Sequence[int]] = ()
        self._given = Given(limits=index_limits(model))
        self._outcomes: dict[Path, Comparison | NotCompared] = {}
        self._layers = find_layers(constants, names_of(model))
        weights = [item.weight.name for item in self._layers if isinstance(item, Layer)]
        self._biases = {weight: find_bias(constants, weight) for weight in weights}

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the specs of the initializers of all graphs and of floating-point Constant nodes, in file order."""
        return self._specs

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason, by the graph."""
        if architecture:
            raise UsageError(f"`{self.path}` states itself which layers it has. Leave out `model`.")
        return self._layers

    def bias_of(self, layer: Layer) -> TensorSpec | None:
        """Return the bias that all nodes with the weight of a layer, and nothing else, use; None if there is none."""
        name = self._biases[layer.weight.name]
        return self._specs[name] if name else None

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        spec = self._specs[name]
        dtype = getattr(torch, spec.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise UnsupportedCheckpoint(f"`{name}` in `{self.path}` is {spec.dtype}, which torch cannot read.")
        data = bytearray().join(self.chunks(name))
        return torch.frombuffer(data, dtype=dtype).reshape(spec.shape) if data else torch.empty(spec.shape, dtype=dtype)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        return chunks_of(self.path, self._stored[name])

    def refuse_replacing(self, format_: str) -> None:
        """Refuse an output that is not a program: without its nodes, factors of the graph's weights are of no use."""
        if not FORMATS[format_].is_program:
            raise UsageError(f"`{self.path}` is a program, so the name of the output must end in .onnx.")

    def compare_on(self, samples: Sequence[Arguments], shapes: Sequence[InputShape]) -> None:
        """Choose the inputs of later comparisons."""
        arrays, sizes = [as_sample(arguments) for arguments in samples], [shape.sizes for shape in shapes]
        self._given = Given(arrays, sizes, self._given.limits)

    def compare(self, output: Path) -> Comparison:
        """Run both models on the same inputs: those that were chosen, or random ones that its outputs depend on.

        The result is reused if the output was checked before it appeared.

        Raises:
            NotCompared: This model cannot be run.
            LrzipError: This model runs and the output does not.
        """
        if output not in self._outcomes:
            self.check_run(output, output)
        outcome = self._outcomes[output]
        if isinstance(outcome, NotCompared):
            raise outcome
        return outcome

    def observe(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run the model on batches in onnxruntime and pass the inputs of layers to an observer."""
        observe_model(self.path, self.nbytes, layers, batches, observer)

    def measure(self, inputs: Sequence[InputShape]) -> Multiplications:
        """Count the multiplications of a run; for branches and loops the model is run in onnxruntime."""
        model = ir.serde.serialize_model(load_model(self.path))
        subject = Subject(self.path, model, self.nbytes, self._given.limits)
        found = count(subject, [shape.sizes for shape in inputs])
        names = {item.weight.name: item.name for item in self._layers if isinstance(item, Layer)}
        positions = {names[weight]: times for weight, times in found.positions.items() if weight in names}
        unknown = frozenset(names[weight] for weight in found.unknown if weight in names)
        self._sizes = list(found.inputs.values())
        return replace(found, positions=positions, unknown=unknown)

    def time(self, output: Path, inputs: Sequence[InputShape]) -> Timing | None:
        """Time both models alternately in onnxruntime, which fuses nodes, so that single layers have no times."""
        total = time(self.path, output, [shape.sizes for shape in inputs] or self._sizes)
        return Timing(total, {}) if total else None

    def check_run(self, written: Path, output: Path) -> None:
        """Run a model that was written and compare its outputs with those of this one.

        Args:
            written: Temporary path of the model.
            output: Path at which the model will appear, for later calls of `compare`.

        Raises:
            LrzipError: This model runs and the one that was written does not.
        """
        try:
            self._outcomes[output] = compare(self.path, written, self._given, nbytes=self.nbytes)
        except NotCompared as error:
            self._outcomes[output] = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass  # files are open only while a tensor is read


def load_model(path: Path) -> ir.Model:
    """Parse a model without its external data.

    Raises:
        UnsupportedCheckpoint: The model is damaged, or contains something that would be lost when it is written.
    """
    absolute = path.absolute()  # onnx resolves external data relative to the model, not to the working directory
    proto = onnx.load(str(absolute), format="protobuf", load_external_data=False)
    if not proto.HasField("graph"):
        raise UnsupportedCheckpoint(f"`{path}` is damaged or not a checkpoint: it has no graph.")
    if proto.training_info:
        raise UnsupportedCheckpoint(f"`{path}` holds training information. Export it for inference.")
    _refuse_sparse(path, proto.graph)
    check_functions(path, proto)
    try:
        model = ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        raise UnsupportedCheckpoint(f"`{path}` is damaged or not a checkpoint: {root_cause(error)}.") from error
    for tensor in external_tensors(model):
        tensor.base_dir = str(absolute.parent)
    return model


def files_of(path: Path, model: ir.Model) -> Sequence[Path]:
    """Return the file of a model and the files of its external data.

    Raises:
        UnsupportedCheckpoint: A file is missing, too short, or outside of the model's folder.
    """
    return [path, *sorted({external_file(path, tensor) for tensor in external_tensors(model)})]


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yield the tensors of initializers and attributes whose data is in other files."""
    for graph in graphs_of(model, functions=True):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
    for node in nodes_of(model):
        for attribute in node.attributes.values():
            values = attribute.value if isinstance(attribute.value, Sequence) else [attribute.value]
            yield from (value for value in values if isinstance(value, ir.ExternalTensor))


def nodes_of(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of all graphs and functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def root_cause(error: BaseException) -> str:
    """Return the message of the first exception in a chain of causes, as a part of one line."""
    while error.__cause__:
        error = error.__cause__
    return one_line(error)


def names_of(model: ir.Model) -> set[str]:
    """Return the names of all values and nodes."""
    names = {value.name for graph in graphs_of(model) for value in (*graph.inputs, *graph.initializers.values())}
    for node in model.graph.all_nodes():
        names |= {node.name, *(output.name for output in node.outputs)}
    return {name for name in names if name}


def _refuse_sparse(path: Path, graph: onnx.GraphProto) -> None:
    if graph.sparse_initializer:
        raise UnsupportedCheckpoint(f"`{path}` has sparse initializers. Save it with dense ones.")
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _refuse_sparse(path, body)

"""Read side of ONNX: an open model, whose external data is read one tensor at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from lrzip.core.costs import Multiplications, Positions, Timing
from lrzip.core.errors import NotCompared, UnsupportedCheckpoint, UsageError
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.moments import Arguments, Observe
from lrzip.core.report import Comparison
from lrzip.core.stored import DenseLayer
from lrzip.formats import FORMATS
from lrzip.formats.files.stream import tensor_bytes
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.onnx.check import complaint_of, refuse_invalid
from lrzip.formats.onnx.compare import compare, time
from lrzip.formats.onnx.costs import Subject, count
from lrzip.formats.onnx.data import chunks_of, spec_of
from lrzip.formats.onnx.feeds import Given
from lrzip.formats.onnx.graph import constants_of, find_bias, find_layers, names_of
from lrzip.formats.onnx.load import files_of, load_model, serialize
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
        model, self._repairs = load_model(path)
        self._model = model
        files = files_of(path, model)
        self.data_files = files[1:]
        self.nbytes = sum(file.stat().st_size for file in files)
        self.metadata: Mapping[str, str] = dict(model.metadata_props)
        self._constants = constants = constants_of(model)
        self._specs = {name: constant.spec(name) for name, constant in constants.items()}
        inputs, stored = model.graph.inputs, model.graph.initializers
        self._inputs = [value.name for value in inputs if value.name and value.name not in stored]
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
        constant = self._constants[name]
        data = bytearray().join(chunks_of(self.path, constant.tensor))
        stored: torch.dtype = getattr(torch, spec_of(name, constant.tensor).dtype)
        flat = torch.frombuffer(data, dtype=stored) if data else torch.empty(0, dtype=stored)
        shape = [int(size) for size in constant.tensor.shape.numpy()]
        return constant.rearranged(flat.reshape(shape)).to(dtype)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        constant = self._constants[name]
        return iter([tensor_bytes(self.read(name))]) if constant.chain else chunks_of(self.path, constant.tensor)

    @cached_property
    def complaint(self) -> str | None:
        """The fault that onnx's checker finds in the repaired model; None if it is valid."""
        return complaint_of(self._as_written)

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about repairs of the model, and about what is wrong in it and stays so."""
        complaint = f"onnx's checker finds a fault in `{self.path}`, and so in the output: {self.complaint}."
        return [*self._repairs, *([complaint] if self.complaint else [])]

    @cached_property
    def _as_written(self) -> Path | bytes:
        """The file, or the serialized model if it was repaired."""
        return bytes(serialize(self.path, self._model).SerializeToString()) if self._repairs else self.path

    def refuse_replacing(self, format_: str) -> None:
        """Refuse an output that is not a program: without its nodes, factors of the graph's weights are of no use."""
        if not FORMATS[format_].is_program:
            raise UsageError(f"`{self.path}` is a program, so the name of the output must end in .onnx.")
        if self.complaint:
            refuse_invalid(self.path, self._as_written, self.nbytes, self.complaint)

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
        observe_model(self.path, self.nbytes, dict(self._used(layers)), batches, observer)

    def _used(self, layers: Sequence[Layer]) -> Iterator[tuple[str, Layer]]:
        """Yield the names of the values that nodes take as weights, with their layers."""
        for layer in layers:
            for node, position in self._constants[layer.weight.name].uses:
                value = node.inputs[position]
                assert value is not None
                yield str(value.name), layer

    def input_names(self) -> Sequence[str]:
        """Return the names of the inputs of the model, in order."""
        return self._inputs

    def measure(self, inputs: Sequence[InputShape]) -> Multiplications:
        """Count the multiplications of a run; for branches and loops the model is run in onnxruntime."""
        model = serialize(self.path, load_model(self.path)[0])
        subject = Subject(self.path, model, self.nbytes, self._given.limits)
        found = count(subject, [shape.sizes for shape in inputs])
        names = {name: layer.name for name, layer in self._used([x for x in self._layers if isinstance(x, Layer)])}
        positions: dict[str, Positions] = {}
        for weight, times in found.positions.items():
            if (name := names.get(weight)) is not None:
                positions[name] = positions[name].plus(times) if name in positions else times
        unknown = frozenset(names[weight] for weight in found.unknown if weight in names)
        self._sizes = list(found.inputs.values())
        return replace(found, positions=positions, unknown=unknown)

    def time(self, output: Path, inputs: Sequence[InputShape]) -> Timing | None:
        """Time both models alternately in onnxruntime, which fuses nodes, so that single layers have no times."""
        sizes = [shape.sizes for shape in inputs] or self._sizes
        total = time(self.path, output, sizes, nbytes=self.nbytes)
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

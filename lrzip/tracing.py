"""From a live network to a program: example inputs, torch.export, and files that are checked before they appear."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lrzip.errors import LrzipError
from lrzip.files.atomic import atomic_file
from lrzip.inputs import BATCH, InputShape, examples, outputs_of, run
from lrzip.report import Difference
from lrzip.runs import difference_of

# Sizes at which results are compared: the one that is traced (a dimension of size 1 would be taken for a constant), a
# single sample, and another.
_SIZES = (2, 1, 3)
# Share of an output's norm by which another order of float32 sums may change it, with room for deep networks.
_AGREES = 1e-3
_PROTOBUF_LIMIT = 1 << 31


@dataclass(frozen=True)
class Traced:
    """A program, and what it has to agree with.

    Attributes:
        program: What torch.export made.
        network: What it was made from.
        runs: Inputs on which both are run; the first is the one that was traced.
        dynamic: For each input, the names of its dynamic dimensions by their position.
        fixed: Names of the dimensions that were to be dynamic, but of which the network makes constants.
    """

    program: ExportedProgram
    network: nn.Module
    runs: Sequence[tuple[Tensor, ...]]
    dynamic: Sequence[Mapping[int, str]]
    fixed: Sequence[str] = ()


def trace(model: nn.Module, inputs: Sequence[InputShape]) -> Traced:
    """Return the program of a network in evaluation mode; named dimensions stay dynamic where the network allows it.

    Raises:
        LrzipError: The network does not take such inputs, or torch.export cannot follow what it does.
    """
    given = inputs[0].sizes[0]
    run(model, inputs, batch=given)
    batches: tuple[int, ...] = _SIZES
    program, shapes = _export(model, inputs, [*_SIZES, given]), list(inputs)
    if program is None:
        shapes = [replace(shape, names=tuple(None if n == BATCH else n for n in shape.names)) for shape in inputs]
        program, batches = _export(model, shapes, [given]), (given,)
    if program is None:
        raise LrzipError("The program of the network does not even run on what it was traced with.")
    dynamic = [
        {axis: name for axis in axes if (name := shape.names[axis])}
        for axes, shape in zip(_dynamic_axes(program), shapes, strict=True)
    ]
    wanted = {name for shape in inputs for name in shape.names if name}
    fixed = sorted(wanted - {name for names in dynamic for name in names.values()})
    return Traced(program, model, [examples(inputs, batch) for batch in batches], dynamic, fixed)


def traced_already(program: ExportedProgram) -> Traced:
    """Return a program that comes from a file, with the inputs that are stored in it, if there are any."""
    arguments, options = program.example_inputs or ((), {})
    stored = bool(arguments) and not options and all(isinstance(x, Tensor) for x in arguments)
    symbols: dict[str, str] = {}
    dynamic = []
    for axes in _dynamic_axes(program):
        for axis, symbol in axes.items():
            symbols.setdefault(symbol, symbol if axis or BATCH in symbols.values() else BATCH)
        dynamic.append({axis: symbols[symbol] for axis, symbol in axes.items()})
    return Traced(program, program.module(), [tuple(arguments)] if stored else [], dynamic)


def _dynamic_axes(program: ExportedProgram) -> list[dict[int, str]]:
    """Return, for each input, the symbols of its dynamic dimensions by their position."""
    nodes = {node.name: node for node in program.graph.nodes}
    values = [nodes[name].meta["val"] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return [
        {axis: str(size) for axis, size in enumerate(getattr(value, "shape", ())) if not isinstance(size, int)}
        for value in values
    ]


def _export(model: nn.Module, inputs: Sequence[InputShape], batches: Sequence[int]) -> ExportedProgram | None:
    """Return a program, if it runs with all these sizes of the batch where the network does."""
    axes = tuple({axis: Dim.AUTO for axis, name in enumerate(shape.names) if name} for shape in inputs)
    program = follow(model, examples(inputs, batches[0]), {}, axes)
    with quiet(), torch.no_grad():
        module = program.module()
        try:
            for batch in batches:
                module(*examples(inputs, batch))
        except Exception:
            return None
    return program


def follow(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any = None
) -> ExportedProgram:
    """Return what torch.export makes of a call of a network.

    Raises:
        LrzipError: It cannot follow what the network does.
    """
    with quiet(), torch.no_grad():
        try:
            return torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic_shapes)
        except Exception as error:
            said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:200].rstrip(".")
            raise LrzipError(f"torch.export cannot follow the network: {type(error).__name__}: {said}.") from error


def save_pt2(traced: Traced, destination: Path) -> Sequence[Difference]:
    """Write a program, after loading it again and comparing it with the network.

    Returns:
        By how much its outputs differ from the network's, each the largest over some batch sizes.
    """
    with _checked_file(destination, ".pt2") as path:
        with quiet():
            torch.export.save(traced.program, path)
            loaded = torch.export.load(path).module()
        return _compare(traced, lambda inputs: outputs_of(loaded, inputs), "the program")


def save_onnx(traced: Traced, destination: Path) -> Sequence[Difference] | None:
    """Write an ONNX model, after running it beside the network.

    Above 2 GB, which protobuf cannot hold, weights go into `NAME.data` beside it.

    Returns:
        As `save_pt2`; None if onnxruntime is not installed, so that nothing could be compared.
    """
    if find_spec("onnxscript") is None:
        raise LrzipError("Writing ONNX takes onnxscript. Install it with `pip install 'lrzip-nn[onnx]'`.")
    nbytes = sum(tensor.nbytes for tensor in traced.program.state_dict.values())
    with _checked_file(destination, ".onnx") as path:
        with quiet():
            torch.onnx.export(
                traced.program,
                (),
                path,
                dynamo=True,
                verbose=False,
                external_data=nbytes >= _PROTOBUF_LIMIT,
                dynamic_shapes=tuple(traced.dynamic),
            )
        if find_spec("onnxruntime") is None:
            return None
        return _compare(traced, _onnx_runner(path), "onnxruntime")


def _onnx_runner(path: Path) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    import onnxruntime  # noqa: TID251  (to check what was written)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def outputs(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return outputs


def _compare(traced: Traced, outputs: Callable[[tuple[Tensor, ...]], Sequence[Tensor]], what: str) -> list[Difference]:
    """Return the largest differences from the network, over all runs.

    Raises:
        LrzipError: They are more than rounding.
    """
    worst: dict[str, Difference] = {}
    for inputs in traced.runs:
        for number, (expected, found) in enumerate(
            zip(outputs_of(traced.network, inputs), outputs(inputs), strict=True)
        ):
            difference = difference_of(f"output {number}", expected, found)
            if not difference.relative <= _AGREES:
                raise LrzipError(
                    f"Output {number} of {what} is {difference.relative:.1e} away from the network's for inputs of "
                    f"{', '.join(str(tuple(x.shape)) for x in inputs)}: more than rounding, so nothing was written."
                )
            worst[difference.output] = max(difference, worst.get(difference.output, difference), key=_relative)
    return list(worst.values())


def _relative(difference: Difference) -> float:
    return difference.relative


@contextmanager
def _checked_file(destination: Path, suffix: str) -> Iterator[Path]:
    """Yield a path of the right suffix in a temporary folder; what is there moves to the destination on success."""
    with (
        atomic_file(destination) as temporary,
        TemporaryDirectory(prefix=".lrzip-", dir=destination.absolute().parent) as folder,
    ):
        path = Path(folder) / f"{destination.stem}{suffix}"
        yield path
        beside = [extra for extra in Path(folder).iterdir() if extra != path]
        for extra in beside:
            if destination.with_name(extra.name).exists():
                raise LrzipError(
                    f"`{destination.with_name(extra.name)}` exists, and the weights would go there. Move it."
                )
            extra.replace(destination.with_name(extra.name))
        path.replace(temporary)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporters from talking to people."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

"""From a live network to a program: example inputs, torch.export, and files that are checked before they appear."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lrzip.core.errors import LrzipError, typed_line
from lrzip.networks.inputs import BATCH, InputShape, example_inputs, run

# Sizes at which results are compared: the one that is traced (a dimension of size 1 would be taken for a constant), a
# single sample, and another.
_SIZES = (2, 1, 3)


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
    return Traced(program, model, [example_inputs(inputs, batch) for batch in batches], dynamic, fixed)


def trace_program(program: ExportedProgram) -> Traced:
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
    program = export_network(model, example_inputs(inputs, batches[0]), {}, axes)
    with quiet(), torch.no_grad():
        module = program.module()
        try:
            for batch in batches:
                module(*example_inputs(inputs, batch))
        except Exception:
            return None
    return program


def export_network(
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
            raise LrzipError(f"torch.export cannot follow the network: {typed_line(error, 200)}.") from error


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

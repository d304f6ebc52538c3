"""Trace a live network as a program of torch.export."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lrzip.core.errors import LrzipError, typed_line
from lrzip.networks.inputs import BATCH, InputShape, example_inputs, run
from lrzip.networks.programs.silence import silenced
from lrzip.networks.programs.trials import randomized

# Batch sizes at which outputs are compared: the one that is traced (a size of 1 would be specialized), a single sample,
# and a third.
_SIZES = (2, 1, 3)


@dataclass(frozen=True)
class Traced:
    """A traced program and the network that it must agree with.

    Attributes:
        program: Result of torch.export.
        network: Network that was traced.
        runs: Inputs for comparing both; the first was traced.
        dynamic: For each input, the names of its dynamic dimensions by position.
        fixed: Names of the dimensions that were requested as dynamic but are constants in the program.
    """

    program: ExportedProgram
    network: nn.Module
    runs: Sequence[tuple[Tensor, ...]]
    dynamic: Sequence[Mapping[int, str]]
    fixed: Sequence[str] = ()


def trace(model: nn.Module, inputs: Sequence[InputShape]) -> Traced:
    """Trace a network in evaluation mode.

    Named dimensions are dynamic where the network allows it. If the program does not run at several batch sizes, the
    batch is fixed.

    Args:
        model: The network.
        inputs: Shape of each input.

    Raises:
        LrzipError: The network does not take such inputs, or torch.export does not support it.
    """
    given = inputs[0].sizes[0]
    run(model, inputs, batch=given)
    batches: tuple[int, ...] = _SIZES
    program, shapes = _export(model, inputs, [*_SIZES, given]), list(inputs)
    if program is None:
        shapes = [replace(shape, names=tuple(None if n == BATCH else n for n in shape.names)) for shape in inputs]
        program, batches = _export(model, shapes, [given]), (given,)
    if program is None:
        raise LrzipError("The traced program does not run on the inputs that it was traced with.")
    dynamic = [
        {axis: name for axis in axes if (name := shape.names[axis])}
        for axes, shape in zip(_dynamic_axes(program), shapes, strict=True)
    ]
    wanted = {name for shape in inputs for name in shape.names if name}
    fixed = sorted(wanted - {name for names in dynamic for name in names.values()})
    return Traced(program, model, _runs(program, inputs, batches), dynamic, fixed)


def _runs(program: ExportedProgram, inputs: Sequence[InputShape], batches: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Return random inputs of several batch sizes, with indices of all rows of tables if the program takes them."""
    plain = [example_inputs(inputs, batch) for batch in batches]
    wide = [randomized(program, (run_, {}))[0] for run_ in plain]
    with silenced(), torch.no_grad():
        try:
            program.module()(*wide[0])
        except Exception:  # an index is out of range after it was computed from the input
            return plain
    return wide


def trace_program(program: ExportedProgram) -> Traced:
    """Return a program from a file as traced, with the inputs that are stored in it, if there are any."""
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
    """Return the program of a network, or None if it does not run at all these batch sizes."""
    axes = tuple({axis: Dim.AUTO for axis, name in enumerate(shape.names) if name} for shape in inputs)
    program = export_network(model, example_inputs(inputs, batches[0]), {}, axes)
    with silenced(), torch.no_grad():
        module = program.module()
        try:
            for batch in batches:
                module(*example_inputs(inputs, batch))
        except Exception:  # a guard of the program or an operator of the network refuses the batch size
            return None
    return program


def export_network(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any = None
) -> ExportedProgram:
    """Return the program that torch.export traces from a call of a network.

    Args:
        model: The network.
        args: Positional arguments of the call.
        kwargs: Named arguments of the call.
        dynamic_shapes: Dynamic dimensions, as torch.export.export takes them.

    Raises:
        LrzipError: torch.export does not support the network.
    """
    with silenced(), torch.no_grad():
        try:
            return torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic_shapes)
        except Exception as error:
            raise LrzipError(f"torch.export cannot follow the network: {typed_line(error, 200)}.") from error

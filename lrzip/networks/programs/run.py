"""Run programs of torch.export to count their multiplications and time them."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from lrzip.core.costs import Latency, Multiplications, Positions, Timing
from lrzip.core.errors import LrzipError, typed_line
from lrzip.core.layers import Layer
from lrzip.core.structure import parents_of_parts
from lrzip.networks.counting import MacCounter
from lrzip.networks.inputs import InputShape, example_inputs
from lrzip.networks.programs.intercept import Intercepted
from lrzip.networks.programs.operators import OPERATORS, tensor_argument
from lrzip.networks.programs.silence import silenced
from lrzip.networks.programs.unroll import Unrolled
from lrzip.networks.timing import time_alternately

# Number of runs in which layers are timed.
_ROUNDS = 12


def measure(program: ExportedProgram, layers: Sequence[Layer], inputs: Sequence[InputShape]) -> Multiplications:
    """Run a program and count its multiplications.

    Args:
        program: The program.
        layers: Layers of the program.
        inputs: Shapes of its inputs. If empty, the inputs that are stored in it are used, and the result is that of one
            sample.

    Raises:
        LrzipError: There are no inputs, or the program does not take them.
    """
    values = input_values(program, inputs)
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    positions, counter = _PositionCounter({layer.weight.name: layer for layer in layers}), MacCounter()
    try:
        with silenced(), torch.no_grad(), counter:
            outputs = Unrolled(program.module(), positions).run(*values.values())
    except Exception as error:
        given = ", ".join(f"{name}: {'×'.join(map(str, shape))}" for name, shape in shapes.items())
        raise LrzipError(f"The program does not run on inputs of {given}: {typed_line(error)}.") from error
    found = Multiplications(positions.found, counter.macs, shapes, not_counted=counter.not_counted)
    return found if inputs else found.of_one(_batch(tensors.values(), outputs))


def _batch(inputs: Iterable[Tensor], outputs: Any) -> int:
    """Return the first size of all inputs, if an output has it too, or 1."""
    sizes = {tensor.shape[0] if tensor.dim() else 1 for tensor in inputs}
    results = [value.shape[0] for value in pytree.tree_leaves(outputs) if isinstance(value, Tensor) and value.dim()]
    return next(iter(sizes)) if len(sizes) == 1 and sizes & set(results) else 1


def time(
    before: ExportedProgram, after: ExportedProgram, layers: Sequence[Layer], inputs: Sequence[InputShape]
) -> Timing:
    """Return the run times of two programs and of their layers on the same inputs.

    Args:
        before: The dense program.
        after: The same program with layers replaced.
        layers: Layers of the dense program.
        inputs: Shapes of the inputs. If empty, the inputs that are stored in the dense program are used.

    Raises:
        LrzipError: There are no inputs.
    """
    values = list(input_values(before, inputs).values())
    spec = before.call_spec.in_spec
    args, kwargs = pytree.tree_unflatten(values, spec) if spec else (values, {})
    dense, small = before.module(), after.module()
    paths = {layer.module: layer.name for layer in layers}
    names = {name: paths[path] for name in after.state_dict for path in parents_of_parts([name]) & paths.keys()}
    dense_clock = _Clock(dense, {layer.weight.name: layer.name for layer in layers})
    small_clock = _Clock(small, names)
    with silenced(), torch.inference_mode():
        for _ in range(_ROUNDS):
            dense_clock.run(*values)
            small_clock.run(*values)
        total = time_alternately(partial(dense, *args, **kwargs), partial(small, *args, **kwargs))
    old, new = dense_clock.medians(), small_clock.medians()
    return Timing(total, {name: Latency(old[name], new[name]) for name in new if name in old})


def input_values(program: ExportedProgram, inputs: Sequence[InputShape]) -> Mapping[str, Any]:
    """Return the flat inputs of a program by name: random ones of given shapes, or those that are stored in it.

    Raises:
        LrzipError: There are no inputs, or not as many as the program takes.
    """
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    stored = copy.deepcopy(pytree.tree_leaves(program.example_inputs)) if program.example_inputs else []
    if not inputs and len(stored) == len(names):
        return dict(zip(names, stored, strict=True))
    constants = {
        spec.arg.name: spec.arg.value
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument)
    }
    wanted = [name for name in names if name not in constants]
    if len(inputs) != len(wanted):
        listed = ", ".join(f"`{name}`" for name in wanted)
        problem = f"takes {len(wanted)} inputs, {listed}" if inputs else f"stores no inputs for {listed}"
        raise LrzipError(f"The program {problem}. Give `input_shapes=SIZES` for each, in this order.")
    examples = dict(zip(wanted, example_inputs(inputs, inputs[0].sizes[0]), strict=True))
    return {name: examples.get(name, constants.get(name)) for name in names}


class _PositionCounter:
    """Counts how often each element of each layer's weight is multiplied in a run."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = layers
        self.found: dict[str, Positions] = {}

    def __call__(self, node: Node, compute: Callable[[], Any], values: Mapping[Node, Any]) -> Any:
        result = compute()
        operator = OPERATORS.get(node.target)
        weight = node.args[operator.weight] if operator and len(node.args) > operator.weight else None
        layer = self._layers.get(str(weight.target)) if isinstance(weight, Node) else None
        if layer and operator:
            x = values[tensor_argument(node, operator.x)]
            positions = Positions.of_call(layer.stage, x.shape, result.shape)
            before = self.found.get(layer.name)
            self.found[layer.name] = before.plus(positions) if before else positions
        return result


class _Clock:
    """Measures the time of the nodes that use each layer's weights.

    Args:
        module: Graph to run.
        layers: Names of layers, by the names of their weights.
    """

    def __init__(self, module: GraphModule, layers: Mapping[str, str]) -> None:
        self._interpreter = Intercepted(module, self._measure)
        self._layers = layers
        self._runs: dict[str, list[float]] = {}

    def run(self, *arguments: Any) -> None:
        """Run the graph once."""
        for seconds in self._runs.values():
            seconds.append(0.0)
        self._interpreter.run(*arguments)

    def medians(self) -> dict[str, float]:
        """Return the median seconds of each layer over all runs but the first."""
        return {name: median(seconds[1:]) for name, seconds in self._runs.items()}

    def _measure(self, node: Node, compute: Callable[[], Any], values: Mapping[Node, Any]) -> Any:
        del values
        start = perf_counter()
        result = compute()
        elapsed = perf_counter() - start
        weights = [str(used.target) for used in node.all_input_nodes if used.op == "get_attr"]
        known = node.op == "call_function"
        for name in {self._layers[weight] for weight in weights if weight in self._layers and known}:
            self._runs.setdefault(name, [0.0])[-1] += elapsed
        return result

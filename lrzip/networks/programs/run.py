"""Run programs of torch.export to count their multiplications and time them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import FlopCounterMode

from lrzip.core.costs import Latency, Positions, Timing
from lrzip.core.layers import Layer
from lrzip.core.structure import parents_of_parts
from lrzip.networks.inputs import InputShape, example_inputs
from lrzip.networks.programs.intercept import Intercepted
from lrzip.networks.programs.silence import silenced
from lrzip.networks.timing import time_alternately

# Number of runs in which layers are timed.
_ROUNDS = 12


def measure(
    program: ExportedProgram, layers: Sequence[Layer], inputs: Sequence[InputShape]
) -> tuple[Mapping[str, Positions], int] | None:
    """Run a program and count its multiplications.

    Args:
        program: The program.
        layers: Layers of the program.
        inputs: Shapes of its inputs. If empty, the inputs that are stored in it are used.

    Returns:
        How often each element of a layer's weight is multiplied, by layer name, and the multiply-accumulates of the
        whole program; None if there are no inputs to run it on.
    """
    arguments = _arguments(program, inputs)
    if arguments is None:
        return None
    module = program.module()
    counter = _PositionCounter({layer.weight.name: layer for layer in layers})
    with silenced(), torch.no_grad(), FlopCounterMode(display=False) as flops:
        Intercepted(module, counter).run(*arguments)
    return counter.found, flops.get_total_flops() // 2


def time(
    before: ExportedProgram, after: ExportedProgram, layers: Sequence[Layer], inputs: Sequence[InputShape]
) -> Timing | None:
    """Return the run times of two programs and of their layers on the same inputs, or None without inputs.

    Args:
        before: The dense program.
        after: The same program with layers replaced.
        layers: Layers of the dense program.
        inputs: Shapes of the inputs. If empty, the inputs that are stored in the dense program are used.
    """
    arguments = _arguments(before, inputs)
    if arguments is None:
        return None
    dense, small = before.module(), after.module()
    paths = {layer.module: layer.name for layer in layers}
    names = {name: paths[path] for name in after.state_dict for path in parents_of_parts([name]) & paths.keys()}
    dense_clock = _Clock(dense, {layer.weight.name: layer.name for layer in layers})
    small_clock = _Clock(small, names)
    with silenced(), torch.inference_mode():
        for _ in range(_ROUNDS):
            dense_clock.run(*arguments)
            small_clock.run(*arguments)
        total = time_alternately(partial(dense, *arguments), partial(small, *arguments))
    old, new = dense_clock.medians(), small_clock.medians()
    return Timing(total, {name: Latency(old[name], new[name]) for name in new if name in old})


def _arguments(program: ExportedProgram, inputs: Sequence[InputShape]) -> tuple[Any, ...] | None:
    if inputs:
        return example_inputs(inputs, inputs[0].sizes[0])
    stored, options = program.example_inputs or ((), {})
    return tuple(stored) if stored and not options else None


class _PositionCounter:
    """Counts how often each element of each layer's weight is multiplied in a run."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = layers
        self.found: dict[str, Positions] = {}

    def __call__(self, node: Node, compute: Callable[[], Any], values: Mapping[Node, Any]) -> Any:
        result = compute()
        for weight in node.all_input_nodes if node.op == "call_function" else ():
            layer = self._layers.get(str(weight.target)) if weight.op == "get_attr" else None
            if layer:
                others = [values[x] for x in node.all_input_nodes if x is not weight]
                given = next((x for x in others if isinstance(x, Tensor) and x.dim() > 1), others[0])
                positions = _positions(layer, given, result)
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


def _positions(layer: Layer, given: Tensor, result: Tensor) -> Positions:
    """Return the positions at which a layer is applied in one call."""
    return Positions.of_call(layer.stage, given.shape, result.shape)

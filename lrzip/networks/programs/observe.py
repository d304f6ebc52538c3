"""Observe the inputs of layers while a program of torch.export runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from lrzip.core.activations import Window
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Observe
from lrzip.networks.observe import inputs_of
from lrzip.networks.programs.operators import OPERATORS, is_layer
from lrzip.networks.programs.rewrite import tensors_of


def observe_program(
    program: ExportedProgram, layers: Mapping[str, Layer], batches: Sequence[Arguments], observer: Observe
) -> None:
    """Run a program on batches and pass the inputs of its layers to an observer.

    Args:
        program: The program.
        layers: Layers to observe, by the name of their weight in the program.
        batches: Positional and named arguments of each run.
        observer: Function that receives the name and the inputs of a layer, once per call of the layer.
    """
    interpreter = _Observer(program, layers, observer)
    with torch.no_grad():
        for args, kwargs in batches:
            interpreter.run(*arguments_of(program, args, kwargs))


def arguments_of(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the values of all placeholders of a graph: the tensors of the program, and the inputs of a call."""
    given = iter(pytree.tree_leaves((args, kwargs)))
    stored = tensors_of(program)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [stored[node][1] if node in stored else next(given) for node in nodes]


def call_of(node: Node, layers: Mapping[str, Layer], names: Mapping[Node, str]) -> tuple[Layer, Node] | None:
    """Return the layer that a node calls and the node of its weight, or None for other nodes.

    Args:
        node: Node of the graph of a program.
        layers: Layers by the name of their weight.
        names: Names of the program's tensors by placeholder.
    """
    for weight in node.all_input_nodes if node.target in OPERATORS else ():
        layer = layers.get(names.get(weight, ""))
        if layer and is_layer(node, weight):
            return layer, weight
    return None


def window_of(node: Node, weight: Tensor) -> Window | None:
    """Return the window of a convolution from the arguments of its call, or None for other layers."""
    if not OPERATORS[node.target].kind.startswith("conv"):
        return None
    given = dict(enumerate(node.args))
    return Window.of(weight.shape[2:], given.get(3, 1), given.get(4, 0), given.get(5, 1))


class _Observer(Interpreter):
    def __init__(self, program: ExportedProgram, layers: Mapping[str, Layer], observer: Observe) -> None:
        super().__init__(program.graph_module)
        self._names = {node: name for node, (name, _) in tensors_of(program).items()}
        self._layers, self._observer = layers, observer

    def run_node(self, n: Node) -> Any:
        """Run one node, and pass its inputs to the observer if it calls a layer."""
        called = call_of(n, self._layers, self._names)
        if called:
            layer, weight = called
            x = self.env[n.args[OPERATORS[n.target].x]]  # type: ignore[index]
            self._observer(layer.name, inputs_of(layer, x, window_of(n, self.env[weight])))
        return super().run_node(n)

"""Observe the inputs of layers while a program of torch.export runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrzip.core.activations import Window
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Observe
from lrzip.networks.observe import inputs_of
from lrzip.networks.programs.intercept import Intercepted
from lrzip.networks.programs.operators import OPERATORS, is_layer, tensor_argument
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
    names = tensor_names(program)

    def intercept(node: Node, compute: Callable[[], Any], values: Mapping[Node, Any]) -> Any:
        called = call_of(node, layers, names)
        if called:
            layer, weight = called
            x = values[tensor_argument(node, OPERATORS[node.target].x)]
            observer(layer.name, inputs_of(layer, x, window_of(node, values[weight])))
        return compute()

    interpreter = Intercepted(program.graph_module, intercept)
    with torch.no_grad():
        for args, kwargs in batches:
            interpreter.run(*arguments_of(program, args, kwargs))


def tensor_names(program: ExportedProgram) -> dict[Node, str]:
    """Return the names of a program's stored tensors, by placeholder."""
    return {node: name for node, (name, _) in tensors_of(program).items()}


def arguments_of(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the values of all placeholders of a graph: the tensors of the program, and the inputs of a call."""
    inputs = iter(pytree.tree_leaves((args, kwargs)))
    stored = tensors_of(program)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [stored[node][1] if node in stored else next(inputs) for node in nodes]


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
    if not OPERATORS[node.target].kind.is_convolution:
        return None
    given = dict(enumerate(node.args))
    return Window.of(weight.shape[2:], given.get(3, 1), given.get(4, 0), given.get(5, 1))

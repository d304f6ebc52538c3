"""Run the graph of a program with a function called in place of the computation of each node."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import GraphModule, Interpreter, Node

Intercept = Callable[[Node, Callable[[], Any], Mapping[Node, Any]], Any]
"""Takes a node, a function that computes its value, and the values of earlier nodes, among them all inputs of the node;
returns the value with which the run continues."""


class Intercepted(Interpreter):
    """An interpreter that hands the computation of each node to a function.

    Args:
        module: Graph to run.
        intercept: Observes, times or replaces the values of nodes.
    """

    def __init__(self, module: GraphModule, intercept: Intercept) -> None:
        super().__init__(module)
        self._intercept = intercept

    def run_node(self, n: Node) -> Any:
        """Return the value of a node."""
        return self._intercept(n, lambda: Interpreter.run_node(self, n), self.env)

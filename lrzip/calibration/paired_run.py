"""Run a dense program and its compressed counterpart side by side, node by node, on the same batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from lrzip.core.moments import Arguments
from lrzip.networks.programs.observe import arguments_of


class PairedRun:
    """The values of the nodes of a program, with its own weights (dense) and with other ones (compressed).

    Values are kept as long as a later node needs them, for all batches.

    Args:
        program: The program, in evaluation mode.
        batches: Arguments of the runs.

    Attributes:
        dense: Values by node in the dense program, one mapping per batch.
        compressed: Values by node in the compressed program, likewise.
    """

    def __init__(self, program: ExportedProgram, batches: Sequence[Arguments]) -> None:
        self._interpreter = Interpreter(program.graph_module)
        self._nodes = [node for node in program.graph.nodes if _is_computed(node)]
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        runs = [arguments_of(program, args, kwargs) for args, kwargs in batches]
        self.dense: list[dict[Node, Any]] = [dict(zip(placeholders, run, strict=True)) for run in runs]
        self.compressed: list[dict[Node, Any]] = [dict(zip(placeholders, run, strict=True)) for run in runs]

    def walk(self, needs: Callable[[Node], Sequence[Node]]) -> Iterator[Node]:
        """Yield each node after it is computed in the dense program and before it is computed in the compressed one.

        Args:
            needs: Returns the nodes whose values must be present, in both programs, when a node is yielded.
        """
        order = _order(self._nodes, needs)
        last = {used: index for index, node in enumerate(order) for used in needs(node)}
        expired: dict[int, list[Node]] = {}
        for node, index in last.items():
            expired.setdefault(index, []).append(node)
        for index, node in enumerate(order):
            self._compute(node, self.dense)
            yield node
            self._compute(node, self.compressed)
            for unused in expired.get(index, []):
                for values in (*self.dense, *self.compressed):
                    values.pop(unused, None)

    def replace(self, node: Node, value: Tensor) -> None:
        """Set the value of a stored tensor in the compressed program."""
        for values in self.compressed:
            values[node] = value

    def _compute(self, node: Node, runs: Sequence[dict[Node, Any]]) -> None:
        for values in runs:
            self._interpreter.env = values
            values[node] = self._interpreter.run_node(node)


def _order(nodes: Sequence[Node], needs: Callable[[Node], Sequence[Node]]) -> list[Node]:
    """Return the nodes in an order in which each one comes after all that it needs."""
    order: dict[Node, None] = {}
    for node in nodes:
        pending = [node]
        while pending:
            first = pending[-1]
            missing = [needed for needed in needs(first) if needed not in order and _is_computed(needed)]
            if missing:
                pending += missing
            else:
                order.setdefault(pending.pop())
    return list(order)


def _is_computed(node: Node) -> bool:
    return node.op not in ("placeholder", "output")

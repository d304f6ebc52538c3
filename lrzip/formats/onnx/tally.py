"""Sum up the multiplications of the nodes of an ONNX model."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import onnx

from lrzip.core.costs import Multiplications, Positions
from lrzip.formats.onnx.execution import Executed
from lrzip.formats.onnx.operators import Call, Shape, UnknownShapeError, is_known, macs_of, multiplies
from lrzip.formats.onnx.shapes import constants_in, shapes_in

_OWN_DOMAINS = ("", "ai.onnx")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = ("Gemm", "MatMul")


@dataclass
class Tally:
    """Sums over nodes.

    Attributes:
        macs: Multiply-accumulates.
        positions: Positions by the name of the weight.
        missing: Operators of nodes that multiply, but how often is not known, with the numbers of such nodes.
        foreign: Operators of which it is not known what they compute.
        weights: Inputs of missing nodes.
    """

    macs: int = 0
    positions: dict[str, Positions] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    foreign: Counter[str] = field(default_factory=Counter)
    weights: set[str] = field(default_factory=set)

    def add(self, call: Call, constants: Mapping[str, Shape]) -> None:
        """Add the multiplications of a call of an operator."""
        if not is_known(call.domain, call.operator):
            self.foreign[f"{call.operator}` of the domain `{call.domain}" if call.domain else call.operator] += 1
        if not multiplies(call.domain, call.operator):
            return
        try:
            products = macs_of(call)
            self.macs += products
            self._place(call, products, constants)
        except UnknownShapeError:
            self.miss(call.operator, call.inputs)

    def miss(self, operator: str, inputs: Sequence[str]) -> None:
        """Note a node that multiplies an unknown number of times."""
        self.missing[operator] += 1
        self.weights.update(inputs)

    def result(self, inputs: Mapping[str, Shape], why: str = "") -> Multiplications:
        """Return the multiplications of a run on inputs of given shapes.

        Args:
            inputs: Shapes of the inputs.
            why: Why the missing nodes could not be counted.
        """
        parts = [f"{_listed(self.missing)}, of unknown sizes" + (f" ({why})" if why else "")] if self.missing else []
        parts += [f"{_listed(self.foreign)}, of unknown costs"] if self.foreign else []
        left_out = "; ".join(parts) or None
        return Multiplications(self.positions, self.macs, inputs, not_counted=left_out, unknown=frozenset(self.weights))

    def _place(self, call: Call, products: int, constants: Mapping[str, Shape]) -> None:
        """Add the positions at which a node applies its weight; of two computed factors the right one counts."""
        if call.domain or call.operator not in (*_CONVOLUTIONS, *_PRODUCTS):
            return
        is_left = call.operator == "MatMul" and call.inputs[0] in constants and call.inputs[1] not in constants
        index = 0 if is_left else 1
        if call.operator in _CONVOLUTIONS:
            x, out = call.input(0), call.output()
            times = Positions.of(x[0], x[2:], out[2:])
        else:
            times = Positions.of(products // max(prod(call.input(index)), 1))
        weight = call.inputs[index]
        self.positions[weight] = self.positions[weight].plus(times) if weight in self.positions else times


class _Node(NamedTuple):
    """A node, and the constants in its scope."""

    node: Any
    constants: Mapping[str, Shape]


def tally_inferred(graph: Any) -> Tally:
    """Return the sums over the nodes of a graph with inferred shapes. Nodes within branches and loops are missing."""
    tally, shapes, constants = Tally(), shapes_in(graph), constants_in(graph)
    for node in graph.node:
        tally.add(_call(node, shapes), constants)
        for body in _bodies(node):
            _miss_inside(body, node.op_type, tally)
    return tally


def tally_executed(graph: Any, executed: Sequence[Executed]) -> Tally:
    """Return the sums over executed nodes.

    Args:
        graph: Graph of the model, in which all nodes have names.
        executed: Nodes in the order of their execution.
    """
    tally = Tally()
    nodes = {item.node.name: item for item in nodes_of(graph, {})}
    for each in executed:
        found = nodes.get(each.node)
        if found and found.node.op_type == each.operator:
            tally.add(_call(found.node, {**found.constants, **_shapes_of(each, found)}), found.constants)
        elif multiplies("", each.operator) or multiplies("com.microsoft", each.operator):
            tally.miss(each.operator, ())  # onnxruntime expanded an operator
    return tally


def nodes_of(graph: Any, constants: Mapping[str, Shape]) -> Iterator[_Node]:
    """Yield the nodes of a graph and of the graphs within, with the constants in their scope."""
    known = {**constants, **constants_in(graph)}
    for node in graph.node:
        yield _Node(node, known)
        for body in _bodies(node):
            yield from nodes_of(body, known)


def _bodies(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _miss_inside(body: Any, operator: str, tally: Tally) -> None:
    for node, _ in nodes_of(body, {}):
        call = _call(node, {})
        if multiplies(call.domain, call.operator):
            tally.miss(f"{call.operator}` within `{operator}", call.inputs)
        elif not is_known(call.domain, call.operator):
            tally.add(call, {})


def _call(node: Any, shapes: Mapping[str, Shape]) -> Call:
    attributes = {
        attribute.name: onnx.helper.get_attribute_value(attribute)
        for attribute in node.attribute
        if attribute.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.TENSOR)
    }
    domain = "" if node.domain in _OWN_DOMAINS else node.domain
    return Call(node.op_type, domain, attributes, list(node.input), list(node.output), shapes)


def _shapes_of(executed: Executed, found: _Node) -> dict[str, Shape]:
    """Return the shapes of the values of a node; onnxruntime lists those that are present, constants at its choice."""
    present = [name for name in found.node.input if name]
    computed = [name for name in present if name not in found.constants]
    names: list[str] = next((names for names in (present, computed) if len(names) == len(executed.inputs)), [])
    outputs = [name for name in found.node.output if name]
    return dict(zip(names, executed.inputs, strict=False)) | dict(zip(outputs, executed.outputs, strict=False))


def _listed(operators: Counter[str]) -> str:
    """Return the names of operators, the most frequent first."""
    texts = [f"`{name}`" + (f" ({number} nodes)" if number > 1 else "") for name, number in operators.most_common()]
    return ", ".join(texts[:3]) + (" and others" if len(texts) > 3 else "")

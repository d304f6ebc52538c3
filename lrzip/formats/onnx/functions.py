"""Count what the functions of an ONNX model unfold to, before any library unfolds them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, TypeAlias

from lrzip.core.errors import UnsupportedCheckpoint

# A function is identified by its domain, name and overload.
Key: TypeAlias = tuple[str, str, str]
# Real models have some ten thousand nodes, in functions for modules within modules.
_MOST_NODES = 1_000_000
_DEEPEST = 200


def check_functions(path: Path, model: Any) -> None:
    """Check that a model without functions, with each call replaced by its nodes, is not too large.

    Args:
        path: Path of the model, for messages.
        model: The parsed model.

    Raises:
        UnsupportedCheckpoint: Functions call each other in a circle, unfold to too many nodes, or are nested too deep.
    """
    calls = {_key(function): Counter(map(_called, _nodes(function.node))) for function in model.functions}
    try:
        order = list(
            TopologicalSorter({name: called.keys() & calls.keys() for name, called in calls.items()}).static_order()
        )
    except CycleError as error:
        names = " → ".join(name for _, name, _ in error.args[1][:5])
        raise UnsupportedCheckpoint(
            f"`{path}` has functions that call themselves, {names}, so it cannot be run. Export it again."
        ) from error
    sizes: dict[Key, int] = {}
    depths: dict[Key, int] = {}
    for name in order:
        sizes[name] = _size(calls[name], sizes)
        depths[name] = 1 + max((depths.get(called, 0) for called in calls[name]), default=0)
    total = _size(Counter(map(_called, _nodes(model.graph.node))), sizes)
    if total > _MOST_NODES:
        raise UnsupportedCheckpoint(
            f"`{path}` has functions that unfold to {total:.0e} nodes, above {_MOST_NODES:.0e}. Export it without them."
        )
    if max(depths.values(), default=0) > _DEEPEST:
        deepest = max(depths.values())
        raise UnsupportedCheckpoint(
            f"`{path}` has functions nested {deepest} deep, above {_DEEPEST}. Export it without."
        )


def _size(called: Counter[Key], sizes: Mapping[Key, int]) -> int:
    return sum(count * sizes.get(name, 1) for name, count in called.items())


def _nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _key(function: Any) -> Key:
    return function.domain, function.name, function.overload


def _called(node: Any) -> Key:
    return node.domain, node.op_type, node.overload

"""Run programs with their branches and loops unrolled, so that all operators are visible to dispatch modes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from lrzip.networks.programs.intercept import Intercepted


class Unrolled(Intercepted):
    """An interpreter that executes branches and loops itself, and hands the nodes of the outer graph to a function."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the value of a call."""
        unrolled = _CONTROL.get(target)
        return unrolled(*args, **kwargs) if unrolled else super().call_function(target, args, kwargs)


def _run(body: GraphModule, *args: Any) -> Any:
    return Unrolled(body, lambda _, compute, __: compute()).run(*args)


def _branch(predicate: Any, true: GraphModule, false: GraphModule, operands: Sequence[Any] = ()) -> Any:
    return _run(true if bool(predicate) else false, *operands)


def _loop(condition: GraphModule, body: GraphModule, carried: Sequence[Any], others: Sequence[Any] = ()) -> Any:
    while bool(pytree.tree_leaves(_run(condition, *carried, *others))[0]):
        carried = _run(body, *carried, *others)
    return carried


def _map(body: GraphModule, mapped: Sequence[Any], others: Sequence[Any] = ()) -> Any:
    found = [_run(body, *slices, *others) for slices in zip(*mapped, strict=True)]
    return pytree.tree_map(lambda *values: torch.stack(values), *found)


def _scan(body: GraphModule, start: Sequence[Any], mapped: Sequence[Any], others: Sequence[Any] = ()) -> Any:
    carried, rows = list(start), []
    for slices in zip(*mapped, strict=True):
        found = _run(body, *carried, *slices, *others)
        carried, row = found[: len(start)], found[len(start) :]
        rows.append(row)
    return [*carried, *(torch.stack(values) for values in zip(*rows, strict=True))]


_HIGHER = torch.ops.higher_order
_CONTROL: Mapping[Any, Callable[..., Any]] = {
    _HIGHER.cond: _branch,
    _HIGHER.while_loop: _loop,
    _HIGHER.map_impl: _map,
    _HIGHER.scan: _scan,
}

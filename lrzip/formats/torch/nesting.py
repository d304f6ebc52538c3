"""Replace state_dicts inside the nested dicts of a training checkpoint."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lrzip.formats.torch.entries import Steps, is_optimizer


def descend(content: Any, steps: Sequence[str]) -> Any:
    """Return the value at a sequence of keys in nested dicts."""
    for step in steps:
        content = content[step]
    return content


def merged(content: Any, entries: Mapping[str, Steps]) -> Mapping[Any, Any]:
    """Return the state_dicts of entries as one; the names of several get their prefixes."""
    if list(entries) == [""]:
        state: Mapping[Any, Any] = descend(content, entries[""])
        return state
    return {
        f"{prefix}{name}": value for prefix, steps in entries.items() for name, value in descend(content, steps).items()
    }


def beside(content: Any, entries: Collection[Steps]) -> list[str]:
    """Return the dotted names of what is beside some entries, on every level of the nesting above them."""
    names: list[str] = []
    taken = {steps[: depth + 1] for steps in entries for depth in range(len(steps))}
    for level in dict.fromkeys(steps[:depth] for steps in entries for depth in range(len(steps))):
        inner = [name for name in descend(content, level) if (*level, name) not in taken]
        names += [".".join((*level, str(name))) for name in inner]
    return names


def rebuilt(content: Any, steps: Sequence[str], state: Any, dropped: Sequence[str], at: tuple[str, ...] = ()) -> Any:
    """Return a copy of nested dicts with another state_dict.

    Args:
        content: Nested dicts.
        steps: Keys that lead to the state_dict.
        state: State_dict to put there.
        dropped: Dotted names of the entries to leave out.
        at: Keys that lead to `content`, for the recursion.
    """
    if len(at) == len(steps):
        return state
    step = steps[len(at)]
    items = [
        (name, rebuilt(value, steps, state, dropped, (*at, step)) if name == step else value)
        for name, value in content.items()
        if ".".join((*at, str(name))) not in dropped
    ]
    return refilled(copy.copy(content), items)


def refilled(mapping: Any, items: Sequence[tuple[Any, Any]]) -> Any:
    """Replace the items of a dict in place; its class and attributes, such as `_metadata`, are preserved."""
    mapping.clear()
    mapping.update(items)
    return mapping


def optimizer_entries(names: Sequence[str]) -> list[str]:
    """Return those of the entries beside the tensors that hold the state of an optimizer."""
    return [name for name in names if is_optimizer(name)]

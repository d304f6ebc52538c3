"""Find a state_dict inside the nested dicts of a training checkpoint, and replace it."""

import copy
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lrzip.core.errors import UnsupportedCheckpoint

# Averaged weights come first, since they are the ones intended for inference.
_ENTRIES = (
    "state_dict_ema", "model_ema", "params_ema", "params-ema", "ema_state_dict",
    "state_dict", "model_state_dict", "model", "params", "net", "network", "weights", "module",
)  # fmt: skip


def find_weights(path: Path, content: Any, key: str | None) -> tuple[str, ...]:
    """Return the keys of nested dicts that lead to the state_dict.

    Without a key, the first entry with a conventional name is chosen, otherwise the largest dict of tensors.

    Args:
        path: Path of the file, for messages.
        content: Content of the file.
        key: Dotted name of the entry to choose.

    Raises:
        UnsupportedCheckpoint: There is no such entry, no state_dict, or no single largest one.
    """
    if key:
        steps = _resolve(content, key.split("."))
        if steps is None:
            raise UnsupportedCheckpoint(f"`{path}` has no entry `{key}` of tensors. It has: {_listing(content)}.")
        return steps
    if not isinstance(content, dict):
        raise UnsupportedCheckpoint(f"`{path}` holds a {type(content).__name__}, not a state_dict.")
    for entry in _ENTRIES:
        found = _steps_within(content.get(entry))
        if found is not None:
            return (entry, *found)
    dicts = {(): content} | {(name,): value for name, value in content.items() if isinstance(name, str)}
    sizes: dict[tuple[str, ...], int] = {steps: _size(value) for steps, value in dicts.items() if _has_tensors(value)}
    largest = [steps for steps, size in sizes.items() if size == max(sizes.values())]
    if len(largest) == 1:
        return largest[0]
    if not largest:
        raise UnsupportedCheckpoint(f"`{path}` holds no state_dict. It has: {_listing(content)}.")
    names = ", ".join(".".join(steps) for steps in largest)
    raise UnsupportedCheckpoint(f"`{path}` holds several state_dicts of one size. Choose with `key=NAME`: {names}.")


def _steps_within(value: Any) -> tuple[str, ...] | None:
    """Return the keys to the tensors within an entry, which may be nested: `{"model": {"state_dict": …}}`."""
    if not isinstance(value, dict):
        return None
    for entry in _ENTRIES:
        if _has_tensors(value.get(entry)):
            return (entry,)
    return () if _has_tensors(value) else None


def _resolve(content: Any, parts: Sequence[str]) -> tuple[str, ...] | None:
    """Split a dotted key into the keys of nested dicts, which may contain dots themselves."""
    if not parts:
        return () if _has_tensors(content) else None
    for count in range(1, len(parts) + 1):
        step = ".".join(parts[:count])
        if isinstance(content, dict) and step in content:
            rest = _resolve(content[step], parts[count:])
            if rest is not None:
                return (step, *rest)
    return None


def descend(content: Any, steps: Sequence[str]) -> Any:
    """Return the value at a sequence of keys in nested dicts."""
    for step in steps:
        content = content[step]
    return content


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(name, str) and isinstance(v, Tensor) for name, v in value.items())


def _size(value: Mapping[str, Any]) -> int:
    return sum(tensor.numel() for tensor in value.values() if isinstance(tensor, Tensor))


def _listing(content: Any) -> str:
    names = [str(name) for name in content] if isinstance(content, dict) else []
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "nothing"


def beside(content: Any, steps: Sequence[str], tensors: Container[str]) -> list[str]:
    """Return the dotted names of the entries beside the tensors, on every level of the nesting."""
    names = [str(name) for name in descend(content, steps) if name not in tensors]
    for depth in range(len(steps)):
        level = descend(content, steps[:depth])
        names += [".".join((*steps[:depth], str(name))) for name in level if name != steps[depth]]
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
    return [name for name in names if re.match(r"optim", name.rpartition(".")[2], re.IGNORECASE)]

"""Choose the entries of a nested checkpoint that hold the weights."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.options import Key
from lrzip.formats.files.keys import shown

Steps: TypeAlias = tuple[str, ...]
"""Keys of nested dicts that lead to a state_dict."""

# Words in the names of entries with averaged weights, which are the ones intended for inference.
_AVERAGED = {"ema", "averaged", "average", "avg", "swa", "shadow", "polyak"}
_TEACHER = "teacher"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_CONVENTIONAL = ("state_dict", "model_state_dict", "model", "params", "net", "network", "weights", "module")
_DEEPEST = 5
_MOST = 10_000


@dataclass(frozen=True)
class Weights:
    """The entries of a nested checkpoint that hold the weights.

    Attributes:
        entries: Keys that lead to each state_dict, by the prefix of the names of its tensors; "" for a single one.
        rivals: Dotted names of the other entries that hold weights.
    """

    entries: Mapping[str, Steps]
    rivals: Sequence[str] = ()

    @property
    def key(self) -> str:
        """Dotted names of the entries."""
        return ", ".join(".".join(steps) for steps in self.entries.values())


def find_weights(path: Path, content: Any, key: Key) -> Weights:
    """Return the entries of nested dicts that hold the weights.

    Without a key, averaged weights are preferred, then the entries with conventional names, then the largest one.

    Args:
        path: Path of the file, for messages.
        content: Content of the file.
        key: Dotted names of the entries to choose.

    Raises:
        UnsupportedCheckpoint: There is no such entry, no state_dict, or no single largest one.
    """
    if not isinstance(content, dict):
        if key:
            raise UnsupportedCheckpoint(f"`{path}` has no entries, so `key={shown(key)}` names nothing.")
        raise UnsupportedCheckpoint(f"`{path}` holds a {type(content).__name__}, not a state_dict.")
    found = dict(_candidates(content))
    chosen = _named(path, content, [key] if isinstance(key, str) else key) if key else {"": _best(path, content, found)}
    others = [steps for steps in _real(found) if steps and steps not in chosen.values()]
    return Weights(chosen, [".".join(steps) for steps in others])


def _named(path: Path, content: Any, keys: Sequence[str]) -> Mapping[str, Steps]:
    """Return the named entries, by the prefixes of their tensors if there are several."""
    found: dict[str, Steps] = {}
    for key in dict.fromkeys(keys):
        steps = _resolve(content, key.split("."))
        if steps is None:
            below = [".".join(steps) for steps, _ in _candidates(content) if ".".join(steps).startswith(f"{key}.")]
            has = ", ".join(below) or _listing(content)
            raise UnsupportedCheckpoint(f"`{path}` has no entry `{key}` of tensors. It has: {has}.")
        found[f"{key}." if len(keys) > 1 else ""] = steps
    for one in found.values():
        if any(other[: len(one)] == one and other != one for other in found.values()):
            raise UnsupportedCheckpoint(f"`{path}`: `key={'.'.join(one)}` contains another of the entries. Take one.")
    return found


def _best(path: Path, content: Any, found: Mapping[Steps, Mapping[str, Any]]) -> Steps:
    """Return the keys that lead to the weights by default."""
    if not found:
        raise UnsupportedCheckpoint(f"`{path}` holds no state_dict. It has: {_listing(content)}.")
    real = _real(found)
    averaged = [steps for steps in real if _is_averaged(steps, found)]
    ranks = {steps: _rank(steps, max(map(len, real))) for steps in averaged or real}
    first = [steps for steps in ranks if ranks[steps] == min(ranks.values())]
    sizes = {steps: _size(found[steps]) for steps in first}
    largest = [steps for steps in first if sizes[steps] == max(sizes.values())]
    if len(largest) > 1:
        names = ", ".join(".".join(steps) for steps in largest)
        raise UnsupportedCheckpoint(f"`{path}` holds several state_dicts of one size. Choose with `key=NAME`: {names}.")
    return largest[0]


def _real(found: Mapping[Steps, Mapping[str, Any]]) -> list[Steps]:
    """Return the entries that hold a matrix, or all if none does; the others are counters and statistics."""
    return [steps for steps, value in found.items() if _has_matrix(value)] or list(found)


def _candidates(content: Any) -> Iterator[tuple[Steps, Mapping[str, Any]]]:
    """Yield nested dicts that hold tensors, except those of optimizers, with the keys that lead to them."""
    waiting: list[tuple[Steps, Any]] = [((), content)]
    visited = 0
    while waiting and visited < _MOST:  # dicts that contain each other would unfold without end
        steps, value = waiting.pop(0)
        visited += 1
        if has_tensors(value):
            yield steps, value
        if len(steps) < _DEEPEST:
            waiting += [
                ((*steps, name), item)
                for name, item in value.items()
                if isinstance(name, str) and isinstance(item, dict) and not is_optimizer(name)
            ]


def _is_averaged(steps: Steps, found: Mapping[Steps, Mapping[str, Any]]) -> bool:
    """Return whether an entry holds averaged weights by its name.

    An average of less than half of the tensors of another entry is no complete network, and a teacher may be another
    network.
    """
    words = {word.lower() for step in steps for word in _WORD.findall(step)}
    own = _shapes(found[steps])
    others = [_shapes(value) for other, value in found.items() if other != steps]
    if words & _AVERAGED:
        return not any(own.keys() <= other.keys() and 2 * len(own) < len(other) for other in others)
    return _TEACHER in words and own in others


def _shapes(value: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(item.shape) for name, item in value.items() if isinstance(item, Tensor)}


def _rank(steps: Steps, length: int) -> tuple[int, ...]:
    """Return a key that puts conventional names first, on every level."""
    last = len(_CONVENTIONAL)
    ranks = [_CONVENTIONAL.index(step) if step in _CONVENTIONAL else last for step in steps]
    return (*ranks, *[last] * (length - len(ranks)))


def _resolve(content: Any, parts: Sequence[str]) -> Steps | None:
    """Split a dotted key into the keys of nested dicts, which may contain dots themselves."""
    if not parts:
        inner = dict(_candidates(content)) if isinstance(content, dict) else {}
        return () if () in inner else next(iter(inner), None) if len(inner) == 1 else None
    for count in range(1, len(parts) + 1):
        step = ".".join(parts[:count])
        if isinstance(content, dict) and step in content:
            rest = _resolve(content[step], parts[count:])
            if rest is not None:
                return (step, *rest)
    return None


def has_tensors(value: Any) -> bool:
    """Return whether a value is a dict in which names lead to tensors."""
    return isinstance(value, dict) and any(isinstance(name, str) and isinstance(v, Tensor) for name, v in value.items())


def is_optimizer(name: str) -> bool:
    """Return whether an entry holds the state of an optimizer, by its last name."""
    return name.rpartition(".")[2].lower().startswith("optim")


def _has_matrix(value: Mapping[str, Any]) -> bool:
    return any(isinstance(item, Tensor) and item.dim() > 1 for item in value.values())


def _size(value: Mapping[str, Any]) -> int:
    return sum(tensor.numel() for tensor in value.values() if isinstance(tensor, Tensor))


def _listing(content: Any) -> str:
    names = [str(name) for name in content] if isinstance(content, dict) else []
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "nothing"

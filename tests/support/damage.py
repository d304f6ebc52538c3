"""Damaged copies of documents: every field missing or of every wrong value, and texts cut at every boundary."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str | int, ...]
WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 7, 1 << 80, 10**400, 0.5, -1.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "7", "\ud800", "a\nb\x1b[31m", [], [[]], [1], [math.nan], ["x"], {}, {"x": 1}, {"x": {"y": []}}),
)
"""Values of every type of JSON, and numbers at and beyond every limit."""


def paths(document: Any, at: Path = ()) -> Iterator[Path]:
    """Yield the path of every value in a document, except the document itself."""
    items = document.items() if isinstance(document, Mapping) else enumerate(document)
    for key, value in items:
        yield (*at, key)
        if isinstance(value, Mapping | list):
            yield from paths(value, (*at, key))


def without(document: Any, path: Path) -> Any:
    """Return a copy of a document without one value."""
    changed = copy.deepcopy(document)
    del _parent(changed, path)[path[-1]]
    return changed


def with_value(document: Any, path: Path, value: Any) -> Any:
    """Return a copy of a document with one value replaced."""
    changed = copy.deepcopy(document)
    _parent(changed, path)[path[-1]] = value
    return changed


def damaged(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield copies of a document, each with one value missing or replaced, with a description."""
    for path in paths(document):
        yield f"{path} missing", without(document, path)
        for value in WRONG:
            yield f"{path} = {value!r}"[:80], with_value(document, path, value)


def _parent(document: Any, path: Path) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document

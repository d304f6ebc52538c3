"""Typed reading of documents: every value of a file is checked for presence, type and range before it is used.

A reader is a function of a value and its place that returns the value in its final type, or raises an error that names
the file, the field and the value. Readers of lists and mappings are made of readers of their elements:

    record = read_json(path, Place(f"`{path}`", "Calibrate again."))
    counts = record.read("counts", mapping(whole(1)))
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any, TypeVar

from lrzip.core.errors import LrzipError, as_line, one_line

T = TypeVar("T")

# No document of lrzip or of transformers is nested as deeply; Python can neither print nor write much deeper ones.
_DEPTH = 100
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True)
class Place:
    """The place of a value in a file, for messages.

    Attributes:
        file: Description of the file, such as "`plan.json`".
        remedy: What to do if the file is damaged, a sentence.
        error: Type of the error to raise.
        path: Path of the value in the file, such as `layers[0].ranks`; empty for the file as a whole.
    """

    file: str
    remedy: str
    error: type[LrzipError] = LrzipError
    path: str = ""

    def at(self, key: str | int) -> "Place":
        """Return the place of an element of this value."""
        if isinstance(key, int):
            return replace(self, path=f"{self.path}[{key}]")
        if not re.fullmatch(r"\w+", key):
            return replace(self, path=f"{self.path}[{key!r}]")
        return replace(self, path=f"{self.path}.{key}" if self.path else key)

    def fault(self, what: str) -> LrzipError:
        """Return an error that states what is wrong with this value, such as `is missing`."""
        subject = f"{self.file}: `{as_line(self.path)}`" if self.path else self.file
        return self.error(f"{subject} {what}. {self.remedy}")

    def wrong(self, requirement: str, value: object) -> LrzipError:
        """Return an error that states what this value must be, such as `a list`, and what it is."""
        return self.fault(f"must be {requirement}, got {shown(value)}")


Reader = Callable[[Any, Place], T]
"""Returns a checked value, given the value and its place."""


@dataclass(frozen=True)
class Record:
    """An object of a document, whose fields are checked as they are read.

    Attributes:
        fields: The fields, unchecked.
        place: Its place.
    """

    fields: Mapping[str, Any]
    place: Place

    def read(self, name: str, reader: Reader[T]) -> T:
        """Return a field.

        Raises:
            LrzipError: It is missing, or not what the reader takes.
        """
        if name not in self.fields:
            raise self.place.at(name).fault("is missing")
        return reader(self.fields[name], self.place.at(name))

    def find(self, name: str, reader: Reader[T]) -> T | None:
        """Return a field, or None if it is missing or null."""
        return optional(reader)(self.fields.get(name), self.place.at(name))


def record(value: Any, place: Place) -> Record:
    """Read an object whose fields are read by name."""
    if not isinstance(value, Mapping):
        raise place.wrong("an object", value)
    return Record(value, place)


def text(value: Any, place: Place) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise place.wrong("a string", value)
    return value


def flag(value: Any, place: Place) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise place.wrong("true or false", value)
    return value


def one_of(choices: Sequence[str]) -> Reader[str]:
    """Return a reader of one of some strings."""

    def read(value: Any, place: Place) -> str:
        if not isinstance(value, str) or value not in choices:
            raise place.wrong(f"one of {', '.join(choices)}", value)
        return value

    return read


def whole(least: int = 0, most: int = _LARGEST) -> Reader[int]:
    """Return a reader of a whole number within bounds."""

    def read(value: Any, place: Place) -> int:
        if type(value) is not int or not least <= value <= most:
            limit = f"from {least}" + (f" to {most}" if most < _LARGEST else " on")
            raise place.wrong(f"a whole number {limit}", value)
        return value

    return read


def number(least: float = -inf, most: float = inf) -> Reader[float]:
    """Return a reader of a finite number within bounds."""

    def read(value: Any, place: Place) -> float:
        if type(value) in (int, float) and _fits(value) and least <= value <= most:
            return float(value)
        limit = (f" from {least:g}" if least > -inf else "") + (f" to {most:g}" if most < inf else "")
        raise place.wrong(f"a finite number{limit}", value)

    return read


def optional(reader: Reader[T]) -> Reader[T | None]:
    """Return a reader of null or what another reader takes."""
    return lambda value, place: None if value is None else reader(value, place)


def each(reader: Reader[T], *, least: int = 0) -> Reader[tuple[T, ...]]:
    """Return a reader of a list with at least some number of elements."""

    def read(value: Any, place: Place) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise place.wrong("a list", value)
        if len(value) < least:
            raise place.wrong(f"a list of at least {least}", value)
        return tuple(reader(item, place.at(index)) for index, item in enumerate(value))

    return read


def mapping(reader: Reader[T]) -> Reader[dict[str, T]]:
    """Return a reader of an object all of whose values are of one kind."""

    def read(value: Any, place: Place) -> dict[str, T]:
        fields = record(value, place).fields
        for name in fields:
            text(name, place)
        return {name: reader(item, place.at(name)) for name, item in fields.items()}

    return read


def read_json(path: Path, place: Place, *, unique: bool = False) -> Record:
    """Return the object in a JSON file.

    Args:
        path: The file.
        place: Its description.
        unique: Whether to refuse objects with several fields of one name, of which Python keeps the last.

    Raises:
        LrzipError: The file cannot be read, or holds no object.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise place.fault(f"cannot be read: {one_line(error)}") from error
    return record(parse_json(content, place, unique=unique), place)


def parse_json(content: str, place: Place, *, unique: bool = False) -> Any:
    """Return the value that a JSON text represents, with a limit on its nesting.

    Args:
        content: The text.
        place: Description of where it comes from.
        unique: Whether to refuse objects with several fields of one name.

    Raises:
        LrzipError: It is not valid JSON.
    """

    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if unique and len(set(names)) < len(names):
            raise place.fault(f"names `{as_line(max(names, key=names.count))}` more than once")
        return dict(pairs)

    try:
        value = json.loads(content, object_pairs_hook=fields)
    except (ValueError, RecursionError) as error:
        raise place.fault(f"is not valid JSON: {one_line(error)}") from error
    layer = [value]
    for _ in range(_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in layer if isinstance(item, dict | list)]
        layer = [item for items in inner for item in items]
        if not layer:
            return value
    raise place.fault(f"is nested more than {_DEPTH} levels deep")


def shown(value: object) -> str:
    """Return a short description of any value of a document: scalars as they are, all others by type and size."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object of {len(value)}"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | int | float):
        return as_line(repr(value), 60)
    return f"an object of type {type(value).__name__}"


def _fits(value: float) -> bool:
    try:
        return isfinite(float(value))
    except OverflowError:
        return False

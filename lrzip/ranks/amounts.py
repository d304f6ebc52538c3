"""Parse amounts of a resource: `50%`, `1.2M`, `10MB`, `5ms`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

from lrzip.core.errors import UsageError

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_BYTES = {f"{prefix}B": 10**power for prefix, power in (("", 0), ("k", 3), ("M", 6), ("G", 9))} | {
    f"{prefix}iB": 2**power for prefix, power in (("K", 10), ("M", 20), ("G", 30))
}


@dataclass(frozen=True)
class Unit:
    """A resource that a budget can limit.

    Attributes:
        noun: What is counted, in the plural.
        suffixes: Factor of each suffix of an amount.
        examples: Examples of amounts, for messages.
    """

    noun: str
    suffixes: Mapping[str, int]
    examples: str


UNITS: Mapping[str, Unit] = {
    "params": Unit("parameters", _COUNTS, "50%, 1.2M or 120000"),
    "nbytes": Unit("bytes of tensors", {"": 1} | _BYTES, "50%, 10MB or 64KiB"),
    "macs": Unit("multiply-accumulates", _COUNTS, "40%, 20M or 1.5G"),
    "latency": Unit("nanoseconds of a run", {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}, "60%, 5ms or 800us"),
}
"""The resources that a budget can limit, by name."""


def parse_amount(unit: str, text: str) -> tuple[float, bool]:
    """Return the amount that a text names, and whether it is a share: `50%` is (0.5, True), `1.2M` (1200000.0, False).

    Args:
        unit: Name of the unit, one of `UNITS`.
        text: The amount, without the unit.

    Raises:
        UsageError: The text is malformed, or names a share above 100 %.
    """
    suffixes = UNITS[unit].suffixes
    found = re.fullmatch(rf"{_NUMBER}\s*(%|[A-Za-z]*)", text.strip())
    if not found or found[2] not in {"%", *suffixes}:
        raise UsageError(f"`budget={unit}` takes an amount such as {UNITS[unit].examples}, got `{text}`.")
    number = float(found[1])
    if found[2] != "%":
        return number * suffixes[found[2]], False
    if number > 100:
        raise UsageError(f"`budget={unit}={text}` is more than all there is. Give at most 100%.")
    return number / 100, True


def parse_size(option: str, text: str) -> int:
    """Return the number of bytes that a text such as `500MB` or `2GiB` names.

    Args:
        option: Name of the option, for the message.
        text: The size.

    Raises:
        UsageError: The text is malformed.
    """
    found = re.fullmatch(rf"{_NUMBER}\s*([A-Za-z]*)", text.strip())
    if not found or found[2] not in {"", *_BYTES}:
        raise UsageError(f"`{option}` takes a size such as 500MB or 2GiB, got `{text}`.")
    scale: int = _BYTES.get(found[2], 1)
    return floor(float(found[1]) * scale)

"""Numbers in JSON documents, which have no NaN and no infinity."""

from math import isfinite


def finite(value: float | None) -> float | None:
    """Return a number that JSON can represent: the value itself, or None if it is NaN, infinite or None."""
    return value if value is not None and isfinite(value) else None

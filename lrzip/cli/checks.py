"""Check that options are compatible with each other, as they declare it."""

from math import isnan

from lrzip.cli.commands import Given
from lrzip.core.declarations import Declared
from lrzip.core.errors import UsageError
from lrzip.core.options import BOUND, CURVE, PLAN


def mode_of(given: Given) -> str:
    """Return the mode in which `compress` runs."""
    values = given.values
    if values["max_drop"] is not None:
        return BOUND
    return CURVE if values["dry_run"] and "," in (values["budget"] or "") else PLAN


def check_options(given: Given, mode: str | None = None) -> None:
    """Raise a UsageError for options that are no numbers, unfit for the mode, exclude others or lack those they need.

    Args:
        given: The command line.
        mode: The mode of `compress`.
    """
    options = [item for item in given.command.options if item.name in given.names]
    for item in options:
        if mode and item.option.modes and mode not in item.option.modes:
            raise UsageError(_unfit(item, mode))
    for item in options:
        _check_number(item, given)
        _check_excludes(item, given)
        _check_needs(item, given)
        companions = _companions(item, given, mode)
        if companions and not any(given.values[other.name] for other in companions):
            missing = " or ".join(f"`{other.usage}`" for other in companions)
            raise UsageError(f"`{item.flag}` goes with {missing}, which is missing.")


def _check_number(item: Declared, given: Given) -> None:
    """Refuse NaN, with which no comparison is true, so that no bound would ever fail."""
    value = given.values[item.name]
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, float) and isnan(number) for number in numbers):
        raise UsageError(f"`{item.flag}` takes a number, got nan.")


def _check_excludes(item: Declared, given: Given) -> None:
    for other in given.command.options:
        if other.name in item.option.excludes and given.values[other.name]:
            raise UsageError(f"`{item.flag}` and `{other.flag}` exclude each other: leave one of them.")


def _check_needs(item: Declared, given: Given) -> None:
    for other in given.command.options:
        if other.name in item.option.needs and given.values[other.name] is None:
            raise UsageError(f"`{item.flag}` needs `{other.usage}`.")


def _companions(item: Declared, given: Given, mode: str | None) -> list[Declared]:
    """Return the options that the mode accepts, and at least one of which an option requires."""
    others = [other for other in given.command.options if other.name in item.option.goes_with]
    return [other for other in others if not (mode and other.option.modes) or mode in other.option.modes]


def _unfit(item: Declared, mode: str) -> str:
    """Return the message for an option that a mode does not accept."""
    if mode == BOUND:
        return f"`max_drop` decides on all ranks itself, so it goes without `{item.flag}`."
    if mode == CURVE and PLAN in item.option.modes:
        return f"`budget` with several amounts goes without `{item.flag}`. Give one amount, or leave it."
    if CURVE not in item.option.modes:
        return f"`{item.flag}` goes with `max_drop=D`, which is missing."
    return f"`{item.flag}` goes with `max_drop=D`, or with several budgets and `dry_run`; neither is given."

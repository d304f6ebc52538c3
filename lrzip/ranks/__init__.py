"""Rank rules, one per file, which implement the protocol `RankRule`."""

from collections.abc import Sequence
from dataclasses import fields
from math import isfinite
from typing import Protocol

from lrzip.core.errors import UsageError
from lrzip.core.registry import Registry
from lrzip.ranks.candidate import Candidate as Candidate
from lrzip.ranks.candidate import Pick as Pick
from lrzip.ranks.context import Choice as Choice
from lrzip.ranks.context import Context as Context
from lrzip.ranks.context import Meter as Meter

RULES = Registry(
    "rank rule",
    {
        "energy": "lrzip.ranks.energy:Energy",
        "ratio": "lrzip.ranks.ratio:Ratio",
        "rank": "lrzip.ranks.fixed:FixedRank",
        "error": "lrzip.ranks.error:Error",
        "vbmf": "lrzip.ranks.vbmf:VBMF",
        "budget": "lrzip.ranks.budget:Budget",
        "pca-energy": "lrzip.ranks.pca_energy:PCAEnergy",
    },
)


class RankRule(Protocol):
    """Choose the ranks of layers, given all of them at once. `str(rule)` names the rule and its number."""

    @property
    def needs_spectra(self) -> bool:
        """Whether the rule reads singular values."""
        ...

    @property
    def unit(self) -> str | None:
        """The resource that the rule limits for the whole checkpoint (`params`, `macs`, …), or None.

        A rule with a unit needs a `Meter`, decides after all other rules, rounds its ranks itself, and may keep a
        layer dense to spend the resource elsewhere.
        """
        ...

    def settled(self, candidate: Candidate) -> bool:
        """Return whether the singular values of a layer are exact enough for this rule."""
        ...

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the ranks of the candidates."""
        ...


def parse_rule(text: str) -> RankRule:
    """Return the rule that a text names: `energy:0.8`, `error:0.1`, `vbmf` or `budget:params=50%`.

    Raises:
        UsageError: The name is unknown or the number is invalid.
    """
    name, colon, value = text.partition(":")
    if name not in RULES:
        known = ", ".join(f"{rule}:X" if fields(RULES[rule]) else rule for rule in RULES)
        raise UsageError(f"Unknown rule `{text}`. Write `keep`, or one of: {known}.")
    rule: RankRule
    if hasattr(RULES[name], "parse"):
        rule = RULES[name].parse(value)
    elif fields(RULES[name]):  # a rule without `parse` has at most one number
        rule = RULES[name](_number(name, value))
    elif colon:
        raise UsageError(f"`{name}` takes no number, got `{value}`. Write `{name}` alone.")
    else:
        rule = RULES[name]()
    return rule


def _number(name: str, value: str) -> float:
    number = number_of(value)
    if number is None:
        raise UsageError(f"`{name}` needs a number, got `{value}`. Write `{name}:X` with a number for X.")
    return number


def number_of(text: str) -> float | None:
    """Return the number that a text names, or None if it names none."""
    try:
        return float(text)
    except ValueError:
        return None


def check(name: str, value: float, *, ok: bool, range_: str) -> None:
    """Raise a UsageError unless the number of a rule is finite and in its range.

    Args:
        name: Name of the rule.
        value: The number.
        ok: Whether it is in the range.
        range_: Description of the range.
    """
    if not (isfinite(value) and ok):
        raise UsageError(f"`{name}` must be {range_}, got {value:g}.")

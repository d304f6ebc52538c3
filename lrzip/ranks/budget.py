"""A budget for all layers together, spent so that the predicted loss is smallest."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import ceil, floor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.plan import BudgetUse
from lrzip.ranks import Candidate, Choice, Context, Meter
from lrzip.ranks.knapsack import Options, least_cost

_THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_BYTES = {f"{prefix}B": 10**power for prefix, power in (("", 0), ("k", 3), ("M", 6), ("G", 9))} | {
    f"{prefix}iB": 2**power for prefix, power in (("K", 10), ("M", 20), ("G", 30))
}
UNITS: Mapping[str, tuple[str, Mapping[str, int], str]] = {
    "params": ("parameters", _THOUSANDS, "50%, 1.2M or 120000"),
    "nbytes": ("bytes of tensors", {"": 1} | _BYTES, "50%, 10MB or 64KiB"),
    "macs": ("multiply-accumulates", _THOUSANDS, "40%, 20M or 1.5G"),
    "latency": ("nanoseconds of a run", {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}, "60%, 5ms or 800us"),
}
"""By unit: what it counts, what its suffixes stand for, and examples of amounts."""


Ranks: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """The ranks of all layers with the least predicted loss within a budget; a layer may also stay dense.

    Attributes:
        unit: `params`, `nbytes`, `macs` or `latency`.
        amount: Share of the whole checkpoint, or a count.
        is_share: Whether `amount` is a share.
    """

    unit: str
    amount: float
    is_share: bool
    needs_spectra = True

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Return the budget that a text names: `params=50%`, `nbytes=10MB` or `macs=20M`.

        Raises:
            UsageError: The text is malformed, or names several budgets.
        """
        unit, _, amount = text.partition("=")
        if unit not in UNITS:
            known = ", ".join(f"{name}=…" for name in UNITS)
            raise UsageError(f"`--budget` takes {known}, such as `params=50%`, got `{text}`.")
        if "," in amount:
            raise UsageError(f"`--budget {text}` names several budgets, for a curve of plans: add `--dry-run`.")
        _, suffixes, examples = UNITS[unit]
        found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%|[A-Za-z]*)", amount.strip())
        if not found or found[2] not in {"%", *suffixes}:
            raise UsageError(f"`--budget {unit}` takes an amount such as {examples}, got `{amount}`.")
        number, is_share = float(found[1]), found[2] == "%"
        if is_share and number > 100:
            raise UsageError(f"`--budget {text}` is more than the whole. Give at most 100%.")
        return cls(unit, number / 100 if is_share else number * suffixes[found[2]], is_share)

    def __str__(self) -> str:
        return f"budget {self.unit}={f'{100 * self.amount:g}%' if self.is_share else f'{self.amount:,.0f}'}"

    def settled(self, candidate: Candidate) -> bool:
        """Return whether singular values are exact, so that a plan does not depend on how they were computed."""
        return not any(spectrum.slack for spectrum in candidate.spectra)

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the ranks with the least predicted loss, and how much of the budget they use.

        Raises:
            UsageError: The budget is above the amount that the unchanged checkpoint uses.
            LrzipError: The budget is below the smallest amount that can be reached.
        """
        meter = context.meter
        assert meter, "a rule with a unit gets a meter"
        limit = floor(self.amount * meter.whole) if self.is_share else floor(self.amount)
        noun = UNITS[self.unit][0]
        if limit > meter.whole:
            raise UsageError(f"`{self}` is more than the whole, which has {meter.whole:,} {noun}. Give less.")
        fixed = meter.whole - context.saved - sum(meter.cost(candidate.layer, None) for candidate in candidates)
        # A sum over layers does not depend on their order if that is always the same.
        ordered = sorted(candidates, key=lambda candidate: candidate.layer.name)
        items = [_options(candidate, meter, context) for candidate in ordered]
        least = fixed + least_cost(items)
        if least > limit:
            share = ceil(1000 * least / max(meter.whole, 1)) / 10
            raise LrzipError(
                f"`{self}` is {limit:,} {noun}, but what stays whole and the smallest ranks come to {least:,}. "
                f"Give at least {self.unit}={share:g}%."
            )
        found = context.objective.allocate(items, limit - fixed)
        ranks = {c.layer.name: _ranks(c, place) for c, place in zip(ordered, found.labels, strict=True) if place}
        used, name = fixed + found.cost, context.objective.name
        return Choice(ranks, BudgetUse(self.unit, meter.whole, limit, used, name, found.loss, found.bound))


def _options(candidate: Candidate, meter: Meter, context: Context) -> Options:
    """Return the ranks that save, labelled by their index among all ranks from 1 on, and the dense layer, labelled 0.

    Ranks are multiples of `round_to` or the largest rank, unless no such ranks save.
    """
    round_to = context.round_to or candidate.layer.round_to
    dense = meter.cost(candidate.layer, None)
    ranks = 1 + np.indices(candidate.max_ranks).reshape(len(candidate.max_ranks), -1)
    most = np.array(candidate.max_ranks)[:, None]
    small = _affine(candidate.parameters, ranks) < candidate.layer.weight.numel
    rounded = small & ((ranks % round_to == 0) | (ranks == most)).all(0)
    places = np.flatnonzero(rounded if rounded.any() else small)
    costs = (_affine if meter.affine else _each)(partial(meter.cost, candidate.layer), ranks[:, places])
    losses = context.objective.joint(candidate).ravel()[places]
    saves = costs < dense
    return Options.of(
        np.append(costs[saves], dense).astype(np.int64),
        np.append(losses[saves], 0.0),
        np.append(places[saves] + 1, 0).astype(np.int64),
    )


def _ranks(candidate: Candidate, place: int) -> tuple[int, ...]:
    """Return ranks by their place among all of them, from 1 on."""
    return tuple(1 + int(index) for index in np.unravel_index(place - 1, candidate.max_ranks))


def _each(count: Callable[[tuple[int, ...]], int], ranks: Ranks) -> Ranks:
    """Return what each of some ranks counts, (unfoldings, n)."""
    return np.array([count(tuple(map(int, column))) for column in ranks.T], dtype=np.int64)


def _affine(count: Callable[[tuple[int, ...]], int], ranks: Ranks) -> Ranks:
    """Return what each of some ranks counts, (unfoldings, n), where that is affine in each."""
    counts = np.zeros(ranks.shape[1], dtype=np.int64)
    for corner in product((1, 2), repeat=len(ranks)):
        weights = [2 - rank if at == 1 else rank - 1 for at, rank in zip(corner, ranks, strict=True)]
        counts += count(corner) * np.prod(weights, axis=0)
    return counts


def parse_size(option: str, text: str) -> int:
    """Return the number of bytes that a text such as `500MB` or `2GiB` names.

    Raises:
        UsageError: The text is malformed.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)", text.strip())
    if not found or found[2] not in {"", *_BYTES}:
        raise UsageError(f"`{option}` takes a size such as 500MB or 2GiB, got `{text}`.")
    scale: int = _BYTES.get(found[2], 1)
    return floor(float(found[1]) * scale)


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Return the budgets of a list such as `params=10%,20%,30%`; only the first needs to name the unit.

    Raises:
        UsageError: An amount is malformed, or the units differ.
    """
    first, *others = text.split(",")
    unit = first.partition("=")[0]
    for other in others:
        if "=" in other and other.partition("=")[0].strip() != unit:
            raise UsageError(f"`--budget {text}` mixes units. Give one unit, such as `params=10%,20%,30%`.")
    parts = [first, *(other.strip() if "=" in other else f"{unit}={other.strip()}" for other in others)]
    return tuple(Budget.parse(part) for part in parts)

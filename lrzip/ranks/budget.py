"""The rank rule `budget`: minimize the predicted loss within a budget for the whole checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, floor, prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lrzip.core.budget_use import BudgetUse
from lrzip.core.errors import LrzipError, UsageError
from lrzip.ranks import Candidate, Choice, Context, Meter, Pick
from lrzip.ranks.amounts import UNITS, parse_amount
from lrzip.ranks.knapsack import Options, least_cost

Ranks: TypeAlias = NDArray[np.int64]
"""Combinations of ranks, shape (unfoldings, n)."""

_DENSE = 0
"""Label of the option to keep a layer dense."""


@dataclass(frozen=True)
class Budget:
    """The ranks of all layers with the least predicted loss within a budget; a layer may also stay dense.

    Attributes:
        unit: `params`, `nbytes`, `macs` or `latency`.
        amount: Share of the dense checkpoint, or a count.
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
            raise UsageError(f"`budget` takes {known}, such as `params=50%`, got `{text}`.")
        if "," in amount:
            raise UsageError(f"`budget={text}` names several budgets, for a curve of plans: add `dry_run=True`.")
        return cls(unit, *parse_amount(unit, amount))

    def __str__(self) -> str:
        return f"budget {self.unit}={f'{100 * self.amount:g}%' if self.is_share else f'{self.amount:,.0f}'}"

    def settled(self, candidate: Candidate) -> bool:
        """Return whether singular values are exact, so that a plan does not depend on how they were computed."""
        return not any(spectrum.slack for spectrum in candidate.spectra)

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the ranks with the least predicted loss, and how much of the budget they use.

        Raises:
            UsageError: The budget is above the amount that the dense checkpoint uses.
            LrzipError: The budget is below the smallest amount that can be reached.
        """
        meter = context.meter
        assert meter, "a rule with a unit gets a meter"
        limit = self._limit(meter)
        fixed = meter.dense - context.saved - sum(meter.cost(candidate.layer, None) for candidate in candidates)
        # Floating-point sums over layers depend on their order, so that order is always the same.
        ordered = sorted(candidates, key=lambda candidate: candidate.group.name)
        items = [_options(candidate, meter, context) for candidate in ordered]
        least = fixed + least_cost(items)
        if least > limit:
            raise self._unreachable(least, limit, meter)
        found = context.objective.allocate(items, limit - fixed)
        labels = zip(ordered, found.labels, strict=True)
        picks = {item.group.name: _pick_of(item, label) for item, label in labels if label != _DENSE}
        used, name = fixed + found.cost, context.objective.name
        return Choice(picks, BudgetUse(self.unit, meter.dense, limit, used, name, found.loss, found.bound))

    def _limit(self, meter: Meter) -> int:
        limit = floor(self.amount * meter.dense) if self.is_share else floor(self.amount)
        if limit > meter.dense:
            noun = UNITS[self.unit].noun
            raise UsageError(f"`{self}` is more than the dense checkpoint has: {meter.dense:,} {noun}. Give less.")
        return limit

    def _unreachable(self, least: int, limit: int, meter: Meter) -> LrzipError:
        share = ceil(1000 * least / max(meter.dense, 1)) / 10
        return LrzipError(
            f"`{self}` is {limit:,} {UNITS[self.unit].noun}, but all that stays dense and the smallest ranks need "
            f"{least:,}. Give at least {self.unit}={share:g}%."
        )


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Return the budgets of a list such as `params=10%,20%,30%`; only the first needs to name the unit.

    Raises:
        UsageError: An amount is malformed, or the units differ.
    """
    first, *others = text.split(",")
    unit = first.partition("=")[0]
    for other in others:
        if "=" in other and other.partition("=")[0].strip() != unit:
            raise UsageError(f"`budget={text}` mixes units. Give one unit, such as `params=10%,20%,30%`.")
    parts = [first, *(other.strip() if "=" in other else f"{unit}={other.strip()}" for other in others)]
    return tuple(Budget.parse(part) for part in parts)


def _options(candidate: Candidate, meter: Meter, context: Context) -> Options:
    """Return the options of a layer: combinations of ranks of all its decompositions that save, and the dense layer.

    Combinations are labeled by their index among all of them, from 1 on.
    """
    dense = meter.cost(candidate.layer, None)
    first, found = 1, [(np.array([dense]), np.array([0.0]), np.array([_DENSE]))]
    for each in candidate.alternatives:
        found.append(_savings(each, meter, context, first))
        first += prod(each.max_ranks)
    costs, losses, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Options.of(costs.astype(np.int64), losses, labels.astype(np.int64))


def _savings(
    candidate: Candidate, meter: Meter, context: Context, first: int
) -> tuple[Ranks, NDArray[np.float64], Ranks]:
    """Return costs, losses and labels of the combinations of ranks of one decomposition that save.

    Ranks are multiples of `round_to` or the largest rank, unless no such combination saves.

    Args:
        candidate: The layer with the decomposition.
        meter: Counts the costs.
        context: Multiple of the ranks, and objective.
        first: Label of the first combination.
    """
    round_to = context.round_to or candidate.layer.round_to
    ranks = 1 + np.indices(candidate.max_ranks).reshape(len(candidate.max_ranks), -1)
    largest = np.array(candidate.max_ranks)[:, None]
    smaller = _multilinear(candidate.parameters, ranks) < candidate.layer.weight.numel
    rounded = smaller & ((ranks % round_to == 0) | (ranks == largest)).all(0)
    indices = np.flatnonzero(rounded if rounded.any() else smaller)

    def count(chosen: tuple[int, ...]) -> int:
        return meter.cost(candidate.layer, Pick(candidate.decomposition, chosen))

    costs = (_multilinear if meter.affine else _one_by_one)(count, ranks[:, indices])
    losses = context.objective.joint(candidate).ravel()[indices]
    saves = costs < meter.cost(candidate.layer, None)
    return costs[saves], losses[saves], indices[saves] + first


def _pick_of(candidate: Candidate, label: int) -> Pick:
    """Return the decomposition and the combination of ranks with a label."""
    index = label - 1
    for each in candidate.alternatives:
        count = prod(each.max_ranks)
        if index < count:
            return Pick(each.decomposition, tuple(1 + int(at) for at in np.unravel_index(index, each.max_ranks)))
        index -= count
    raise ValueError(f"no combination of ranks has the label {label}")


def _one_by_one(count: Callable[[tuple[int, ...]], int], ranks: Ranks) -> Ranks:
    """Return the counts of combinations of ranks, shape (n,)."""
    return np.array([count(tuple(map(int, column))) for column in ranks.T], dtype=np.int64)


def _multilinear(count: Callable[[tuple[int, ...]], int], ranks: Ranks) -> Ranks:
    """Return the counts of combinations of ranks, shape (n,), where the count is affine in each rank.

    The counts at ranks of 1 and 2 determine all others.
    """
    counts = np.zeros(ranks.shape[1], dtype=np.int64)
    for corner in product((1, 2), repeat=len(ranks)):
        weights = [2 - rank if at == 1 else rank - 1 for at, rank in zip(corner, ranks, strict=True)]
        counts += count(corner) * np.prod(weights, axis=0)
    return counts

"""The multiple-choice knapsack: one option of each item, the least loss that a budget buys."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Losses = NDArray[np.float64]
# Chords that close in on the best price; each is the last one as soon as it finds nothing below it.
_CHORDS = 200
# Sums that the exact search may form in all, and how many partial choices it keeps at least.
_SUMS = 1_000_000
_FEWEST_STATES = 8
# Times that the items at which the best price is torn are held back, so that others get what their leap would cost.
_HOLDS = 4
# Losses are sums of float64.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Options:
    """What may become of one item.

    Attributes:
        costs: (k,), strictly ascending.
        losses: (k,), strictly descending.
        labels: (k,), what the caller calls them.
    """

    costs: Numbers
    losses: Losses
    labels: Numbers

    @classmethod
    def of(cls, costs: Numbers, losses: Losses, labels: Numbers) -> "Options":
        """Return those of (k,) options, in any order, than which no other one both costs and loses no more."""
        useful = _undominated(costs, losses, np.arange(len(costs)))
        return cls(costs[useful], losses[useful], labels[useful])

    def first(self, count: int) -> "Options":
        """Return the cheapest ones."""
        return Options(self.costs[:count], self.losses[:count], self.labels[:count])


@dataclass(frozen=True)
class Allocation:
    """One option of each item.

    Attributes:
        labels: Of the options, in the order of the items.
        cost: Of all of them.
        loss: Of all of them.
        bound: No choice within the budget has a loss below it.
    """

    labels: tuple[int, ...]
    cost: int
    loss: float
    bound: float


def least_cost(items: Sequence[Options]) -> int:
    """Return what the cheapest options cost together."""
    return int(sum(item.costs[0] for item in items))


def least_sum(items: Sequence[Options], budget: int) -> Allocation:
    """Choose options with the least sum of losses.

    A Lagrange multiplier prices costs (Everett 1963), which gives a choice and a bound on all others. A greedy step
    spends what is left, and a search over all options that the bound does not rule out closes the gap: exactly, unless
    there are too many of them.

    Args:
        items: At least the cheapest options must be within the budget.
        budget: For the sum of costs.

    Raises:
        ValueError: They are not.
    """
    _check(items, budget)
    if _cost(items, _last(items)) <= budget:
        return _allocation(items, _last(items), bound=-inf)
    price, within, beyond = _price(items, budget)
    reduced = [item.losses + price * item.costs for item in items]
    lowest = [values.min() for values in reduced]
    bound = float(sum(lowest) - price * budget)
    known = _known(items, within, beyond, budget)
    regrets = [values - low for values, low in zip(reduced, lowest, strict=True)]
    return _search(items, regrets, price, budget, known, bound)


def least_maximum(items: Sequence[Options], budget: int) -> Allocation:
    """Choose options with the least maximum of losses, exactly; what is left goes to the largest that it can lower.

    Args:
        items: At least the cheapest options must be within the budget.
        budget: For the sum of costs.

    Raises:
        ValueError: They are not.
    """
    _check(items, budget)
    thresholds = np.unique(np.concatenate([item.losses for item in items])) if items else np.zeros(1)
    low, high = -1, len(thresholds) - 1
    while high - low > 1:
        middle = (low + high) // 2
        within = _cost(items, _below(items, thresholds[middle])) <= budget
        low, high = (low, middle) if within else (middle, high)
    chosen = _below(items, thresholds[high])
    left = budget - _cost(items, chosen)
    heap = [(-float(item.losses[at]), index) for index, (item, at) in enumerate(zip(items, chosen, strict=True))]
    heapify(heap)
    while heap:
        _, index = heappop(heap)
        item, at = items[index], chosen[index]
        if at + 1 < len(item.costs) and item.costs[at + 1] - item.costs[at] <= left:
            left -= int(item.costs[at + 1] - item.costs[at])
            chosen[index] = at + 1
            heappush(heap, (-float(item.losses[at + 1]), index))
    loss = max((float(item.losses[at]) for item, at in zip(items, chosen, strict=True)), default=0.0)
    return Allocation(_labels(items, chosen), _cost(items, chosen), loss, loss)


def _check(items: Sequence[Options], budget: int) -> None:
    if least_cost(items) > budget:
        raise ValueError(f"the cheapest options cost {least_cost(items)}, the budget is {budget}")


def _price(items: Sequence[Options], budget: int) -> tuple[float, Numbers, Numbers]:
    """Return the best price of one unit of cost, and the choices within and beyond the budget that it is torn between.

    A chord through the best choices within and beyond the budget has a slope; where that price finds nothing below the
    chord, no price gives a better bound.
    """
    within = np.zeros(len(items), dtype=np.int64)
    beyond = _last(items)
    price = 0.0
    for _ in range(_CHORDS):
        saved = _loss(items, within) - _loss(items, beyond)
        price = saved / (_cost(items, beyond) - _cost(items, within))
        found = np.array(
            [
                first + np.argmin(item.losses[first : last + 1] + price * item.costs[first : last + 1])
                for item, first, last in zip(items, within, beyond, strict=True)
            ]
        )
        chord = _loss(items, within) + price * _cost(items, within)
        if _loss(items, found) + price * _cost(items, found) >= chord * (1 - _ROUNDING):
            break
        within, beyond = (found, beyond) if _cost(items, found) <= budget else (within, found)
    return price, within, beyond


def _known(items: Sequence[Options], within: Numbers, beyond: Numbers, budget: int) -> Numbers:
    """Return a good choice within the budget, from those that the best price is torn between.

    A large layer that leaps from a low rank to being whole may leave much that the price lets nobody have.
    """
    known = _fill(items, within, budget)
    held = list(items)
    for _ in range(_HOLDS):
        held = [item.first(at + 1) if at != to else item for item, at, to in zip(held, within, beyond, strict=True)]
        if _cost(held, _last(held)) <= budget:
            break
        _, within, beyond = _price(held, budget)
        filled = _fill(items, within, budget)
        known = filled if _loss(items, filled) < _loss(items, known) else known
    return known


def _fill(items: Sequence[Options], chosen: Numbers, budget: int) -> Numbers:
    """Spend what is left of a budget, each time on what lowers the sum of losses most."""
    chosen = chosen.copy()
    left = budget - _cost(items, chosen)
    while True:
        reach = [
            int(np.searchsorted(item.costs, item.costs[at] + left, side="right")) - 1
            for item, at in zip(items, chosen, strict=True)
        ]
        gains = [item.losses[at] - item.losses[best] for item, at, best in zip(items, chosen, reach, strict=True)]
        index = int(np.argmax(gains))
        if gains[index] <= 0:
            return chosen
        left -= int(items[index].costs[reach[index]] - items[index].costs[chosen[index]])
        chosen[index] = reach[index]


def _search(
    items: Sequence[Options], regrets: Sequence[Losses], price: float, budget: int, known: Numbers, bound: float
) -> Allocation:
    """Return the best choice, or the best that a limited number of partial choices leads to.

    The loss of any choice is the bound, its regrets at the price, and the price of what it leaves unused. So options
    and partial choices with more regret than the known choice is above the bound are out; so are partial choices that
    cost and lose no less than another one.
    """
    gap = (_loss(items, known) - bound) * (1 + _ROUNDING) + _ROUNDING * abs(bound)
    kept = [np.flatnonzero(regret <= gap) for regret in regrets]
    low = sum(int(item.costs[options[0]]) for item, options in zip(items, kept, strict=True))
    high = sum(int(item.costs[options[-1]]) for item, options in zip(items, kept, strict=True))
    undecided = sum(len(options) for options in kept if len(options) > 1)
    limit = max(_SUMS // max(undecided, 1), _FEWEST_STATES)
    costs, sums = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[Numbers, Numbers]] = []
    lost = inf
    for item, regret, options in zip(items, regrets, kept, strict=True):
        low, high = low - int(item.costs[options[0]]), high - int(item.costs[options[-1]])
        all_costs = (costs[:, None] + item.costs[options]).ravel()
        all_sums = (sums[:, None] + regret[options]).ravel()
        least = all_sums + price * np.maximum(budget - high - all_costs, 0)
        hopeful = np.flatnonzero((all_costs + low <= budget) & (least <= gap))
        states = _undominated(all_costs, all_sums - price * all_costs, hopeful)
        if len(states) > limit:
            states = states[np.argsort(all_sums[states], kind="stable")]
            lost = min(lost, float(all_sums[states[limit]]))
            states = states[:limit]
        steps.append((states // len(options), options[states % len(options)]))
        costs, sums = all_costs[states], all_sums[states]
    if len(costs):
        state = int(np.argmin(sums + price * (budget - costs)))
        found = np.zeros_like(known)
        for index in reversed(range(len(items))):
            parents, options = steps[index]
            found[index], state = options[state], int(parents[state])
        known = found if _loss(items, found) < _loss(items, known) else known
    return _allocation(items, known, bound + lost)


def _undominated(costs: Numbers, losses: Losses, among: Numbers) -> Numbers:
    """Return those than which no other one both costs and loses no more, by ascending cost and descending loss."""
    order = among[np.lexsort((losses[among], costs[among]))]
    if not len(order):
        return order
    return order[np.r_[True, losses[order][1:] < np.minimum.accumulate(losses[order])[:-1]]]


def _allocation(items: Sequence[Options], chosen: Numbers, bound: float) -> Allocation:
    loss = _loss(items, chosen)
    return Allocation(_labels(items, chosen), _cost(items, chosen), loss, min(bound, loss) if bound > -inf else loss)


def _below(items: Sequence[Options], threshold: float) -> Numbers:
    """Return the cheapest options with losses of at most a threshold, or the last ones."""
    return np.array(
        [min(int(np.searchsorted(-item.losses, -threshold)), len(item.losses) - 1) for item in items], dtype=np.int64
    )


def _last(items: Sequence[Options]) -> Numbers:
    """Return the options with the least losses."""
    return np.array([len(item.costs) - 1 for item in items], dtype=np.int64)


def _cost(items: Sequence[Options], chosen: Numbers) -> int:
    return int(sum(item.costs[at] for item, at in zip(items, chosen, strict=True)))


def _loss(items: Sequence[Options], chosen: Numbers) -> float:
    return float(sum(item.losses[at] for item, at in zip(items, chosen, strict=True)))


def _labels(items: Sequence[Options], chosen: Numbers) -> tuple[int, ...]:
    return tuple(int(item.labels[at]) for item, at in zip(items, chosen, strict=True))

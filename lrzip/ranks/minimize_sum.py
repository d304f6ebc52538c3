"""The multiple-choice knapsack with additive losses: Lagrangian relaxation, then a search that closes the gap."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from lrzip.ranks.knapsack import (
    Allocation,
    Losses,
    Numbers,
    Options,
    check_budget,
    last_options,
    pareto_front,
    sum_of_costs,
    sum_of_losses,
)

# Iterations of the search for the best multiplier; it ends earlier, when no choice lies below the chord.
_MAX_CHORDS = 200
# Sums that the exact search may form in total, and the smallest number of partial choices it keeps at each item.
_MAX_SUMS = 1_000_000
_MIN_STATES = 8
# Rounds in which items with a large step in cost are held at the lower option, so that others get the budget.
_MAX_HOLDS = 4
# Relative rounding error of sums of float64 losses.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class _Relaxation:
    """The Lagrangian relaxation at its best multiplier.

    Attributes:
        price: The multiplier: loss per unit of cost.
        regrets: For each item, the loss plus the priced cost of each option, minus the least of these, shape (k,).
        bound: Lower bound on the sum of losses of every choice within the budget, whatever rounding errors it has.
    """

    price: float
    regrets: Sequence[Losses]
    bound: float

    @classmethod
    def of(cls, items: Sequence[Options], price: float, budget: int) -> "_Relaxation":
        reduced = [item.losses + price * item.costs for item in items]
        lowest = [values.min() for values in reduced]
        # Where the bound is a small difference of large sums, their rounding errors exceed its own.
        slack = _ROUNDING * (float(sum(abs(low) for low in lowest)) + price * budget)
        bound = float(sum(lowest) - price * budget) - slack
        return cls(price, [values - low for values, low in zip(reduced, lowest, strict=True)], bound)


@dataclass(frozen=True)
class _States:
    """Partial choices: one option of each of the first few items.

    Attributes:
        costs: Their costs, shape (n,).
        regrets: Their sums of regrets, shape (n,).
        parents: Index of the partial choice that each one extends, shape (n,).
        options: Index of the option that it adds, shape (n,).
    """

    costs: Numbers
    regrets: Losses
    parents: Numbers
    options: Numbers


def minimize_sum(items: Sequence[Options], budget: int) -> Allocation:
    """Return the choice with the least sum of losses within a budget.

    A Lagrange multiplier prices costs (Everett 1963), which gives a feasible choice and a lower bound on all others. A
    greedy step spends the remaining budget, and a search over all options that the bound does not exclude closes the
    gap. The result is exact unless the search would form too many sums; `Allocation.bound` then bounds its
    distance from the optimum.

    Args:
        items: Options of each item.
        budget: Upper limit on the sum of costs.

    Raises:
        ValueError: Even the cheapest options cost more than the budget.
    """
    check_budget(items, budget)
    if sum_of_costs(items, last_options(items)) <= budget:
        return Allocation.of_sum(items, last_options(items))
    price, within, beyond = _best_price(items, budget)
    incumbent = _feasible_choice(items, within, beyond, budget)
    return _search(items, _Relaxation.of(items, price, budget), budget, incumbent)


def _best_price(items: Sequence[Options], budget: int) -> tuple[float, Numbers, Numbers]:
    """Return the best multiplier, and the choices within and beyond the budget between which it is indifferent.

    The slope of the chord through the best choices within and beyond the budget is the next price. Where that price
    finds no choice below the chord, no price gives a better bound.
    """
    within = np.zeros(len(items), dtype=np.int64)
    beyond = last_options(items)
    price = 0.0
    for _ in range(_MAX_CHORDS):
        saved = sum_of_losses(items, within) - sum_of_losses(items, beyond)
        price = saved / (sum_of_costs(items, beyond) - sum_of_costs(items, within))
        found = np.array(
            [
                first + np.argmin(item.losses[first : last + 1] + price * item.costs[first : last + 1])
                for item, first, last in zip(items, within, beyond, strict=True)
            ]
        )
        chord = sum_of_losses(items, within) + price * sum_of_costs(items, within)
        if sum_of_losses(items, found) + price * sum_of_costs(items, found) >= chord * (1 - _ROUNDING):
            break
        within, beyond = (found, beyond) if sum_of_costs(items, found) <= budget else (within, found)
    return price, within, beyond


def _feasible_choice(items: Sequence[Options], within: Numbers, beyond: Numbers, budget: int) -> Numbers:
    """Return a good choice within the budget, from the two choices of `_best_price`.

    A large layer that steps from a low rank to its dense weight may leave a large part of the budget unspent. Such
    items are held at their lower option for some rounds, so that the others can use it.
    """
    best = _spend_remainder(items, within, budget)
    held = list(items)
    for _ in range(_MAX_HOLDS):
        held = [item.first(at + 1) if at != to else item for item, at, to in zip(held, within, beyond, strict=True)]
        if sum_of_costs(held, last_options(held)) <= budget:
            break
        _, within, beyond = _best_price(held, budget)
        filled = _spend_remainder(items, within, budget)
        best = filled if sum_of_losses(items, filled) < sum_of_losses(items, best) else best
    return best


def _spend_remainder(items: Sequence[Options], chosen: Numbers, budget: int) -> Numbers:
    """Spend the rest of a budget greedily, each time on the option that lowers the sum of losses most."""
    chosen = chosen.copy()
    remainder = budget - sum_of_costs(items, chosen)
    while True:
        reach = [
            int(np.searchsorted(item.costs, item.costs[at] + remainder, side="right")) - 1
            for item, at in zip(items, chosen, strict=True)
        ]
        gains = [item.losses[at] - item.losses[best] for item, at, best in zip(items, chosen, reach, strict=True)]
        index = int(np.argmax(gains))
        if gains[index] <= 0:
            return chosen
        remainder -= int(items[index].costs[reach[index]] - items[index].costs[chosen[index]])
        chosen[index] = reach[index]


def _search(items: Sequence[Options], relaxation: _Relaxation, budget: int, incumbent: Numbers) -> Allocation:
    """Return the best choice, or the best one that a limited number of partial choices leads to.

    The loss of any choice is the bound, plus its regrets, plus the price of the budget that it leaves unspent. So
    options and partial choices whose regret exceeds the gap between the incumbent and the bound are excluded; so are
    partial choices that are not Pareto-optimal.

    Args:
        items: Options of each item.
        relaxation: Regrets of the options, and the bound.
        budget: Upper limit on the sum of costs.
        incumbent: The best choice so far, as indices of options, shape (items,).
    """
    bound = relaxation.bound
    gap = (sum_of_losses(items, incumbent) - bound) * (1 + _ROUNDING)
    kept = [np.flatnonzero(regret <= gap) for regret in relaxation.regrets]
    steps, discarded = _partial_choices(items, relaxation, budget, kept, gap)
    last = steps[-1]
    if len(last.costs):
        found = _traced_back(steps, int(np.argmin(last.regrets + relaxation.price * (budget - last.costs))))
        incumbent = found if sum_of_losses(items, found) < sum_of_losses(items, incumbent) else incumbent
    return Allocation.of_sum(items, incumbent, bound + discarded)


def _partial_choices(
    items: Sequence[Options], relaxation: _Relaxation, budget: int, kept: Sequence[Numbers], gap: float
) -> tuple[list[_States], float]:
    """Return the promising partial choices after each item, and the least regret of those discarded for their number.

    Args:
        items: Options of each item.
        relaxation: Regrets of the options.
        budget: Upper limit on the sum of costs.
        kept: Indices of the options of each item that are not excluded.
        gap: Largest regret of a choice that could be better than the incumbent.
    """
    cheapest = sum(int(item.costs[options[0]]) for item, options in zip(items, kept, strict=True))
    dearest = sum(int(item.costs[options[-1]]) for item, options in zip(items, kept, strict=True))
    undecided = sum(len(options) for options in kept if len(options) > 1)
    limit = max(_MAX_SUMS // max(undecided, 1), _MIN_STATES)
    states = _States(np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    steps: list[_States] = []
    discarded = inf
    for item, regret, options in zip(items, relaxation.regrets, kept, strict=True):
        cheapest, dearest = cheapest - int(item.costs[options[0]]), dearest - int(item.costs[options[-1]])
        costs = (states.costs[:, None] + item.costs[options]).ravel()
        regrets = (states.regrets[:, None] + regret[options]).ravel()
        least = regrets + relaxation.price * np.maximum(budget - dearest - costs, 0)
        hopeful = np.flatnonzero((costs + cheapest <= budget) & (least <= gap))
        front = pareto_front(costs, regrets - relaxation.price * costs, hopeful)
        if len(front) > limit:
            front = front[np.argsort(regrets[front], kind="stable")]
            discarded = min(discarded, float(regrets[front[limit]]))
            front = front[:limit]
        states = _States(costs[front], regrets[front], front // len(options), options[front % len(options)])
        steps.append(states)
    return steps, discarded


def _traced_back(steps: Sequence[_States], state: int) -> Numbers:
    """Return the options that lead to one of the last states, shape (items,)."""
    chosen = np.zeros(len(steps), dtype=np.int64)
    for index in reversed(range(len(steps))):
        chosen[index] = steps[index].options[state]
        state = int(steps[index].parents[state])
    return chosen

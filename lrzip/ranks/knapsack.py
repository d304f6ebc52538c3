"""The multiple-choice knapsack problem: choose one option of each item, with the least loss within a budget of cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """The options of one item: its Pareto front in cost and loss.

    Attributes:
        costs: Costs, shape (k,), strictly ascending.
        losses: Losses, shape (k,), strictly descending.
        labels: Identifiers assigned by the caller, shape (k,).
    """

    costs: Numbers
    losses: Losses
    labels: Numbers

    @classmethod
    def of(cls, costs: Numbers, losses: Losses, labels: Numbers) -> "Options":
        """Return the Pareto-optimal options.

        Args:
            costs: Costs, shape (k,), in any order.
            losses: Losses, shape (k,).
            labels: Identifiers, shape (k,).
        """
        optimal = pareto_front(costs, losses, np.arange(len(costs)))
        return cls(costs[optimal], losses[optimal], labels[optimal])

    def first(self, count: int) -> "Options":
        """Return the `count` cheapest options."""
        return Options(self.costs[:count], self.losses[:count], self.labels[:count])


@dataclass(frozen=True)
class Allocation:
    """One chosen option per item.

    Attributes:
        labels: Labels of the chosen options, in the order of the items.
        cost: Total cost.
        loss: Total loss: the sum or the maximum of the losses, whichever was minimized.
        bound: Lower bound on the total loss of every choice within the budget.
    """

    labels: tuple[int, ...]
    cost: int
    loss: float
    bound: float

    @classmethod
    def of_sum(cls, items: Sequence[Options], chosen: Numbers, bound: float = -inf) -> "Allocation":
        """Return the allocation of the chosen options, whose losses add up.

        Args:
            items: Options of each item.
            chosen: Index of the chosen option of each item, shape (items,).
            bound: Lower bound on the loss; by default, the choice is optimal and its loss is the bound.
        """
        loss = sum_of_losses(items, chosen)
        return cls(
            labels_of(items, chosen), sum_of_costs(items, chosen), loss, min(bound, loss) if bound > -inf else loss
        )


def pareto_front(costs: Numbers, losses: Losses, indices: Numbers) -> Numbers:
    """Return the indices of the Pareto-optimal options, by ascending cost and descending loss.

    Args:
        costs: Costs, shape (k,).
        losses: Losses, shape (k,).
        indices: Indices of the options to consider, shape (n,).
    """
    order = indices[np.lexsort((losses[indices], costs[indices]))]
    if not len(order):
        return order
    return order[np.r_[True, losses[order][1:] < np.minimum.accumulate(losses[order])[:-1]]]


def least_cost(items: Sequence[Options]) -> int:
    """Return the total cost of the cheapest option of each item."""
    return int(sum(item.costs[0] for item in items))


def check_budget(items: Sequence[Options], budget: int) -> None:
    """Raise a ValueError if even the cheapest options cost more than the budget."""
    if least_cost(items) > budget:
        raise ValueError(f"the cheapest options cost {least_cost(items)}, the budget is {budget}")


def last_options(items: Sequence[Options]) -> Numbers:
    """Return the indices of the options with the least losses, shape (items,)."""
    return np.array([len(item.costs) - 1 for item in items], dtype=np.int64)


def sum_of_costs(items: Sequence[Options], chosen: Numbers) -> int:
    """Return the sum of the costs of the chosen options."""
    return int(sum(item.costs[index] for item, index in zip(items, chosen, strict=True)))


def sum_of_losses(items: Sequence[Options], chosen: Numbers) -> float:
    """Return the sum of the losses of the chosen options."""
    return float(sum(item.losses[index] for item, index in zip(items, chosen, strict=True)))


def labels_of(items: Sequence[Options], chosen: Numbers) -> tuple[int, ...]:
    """Return the labels of the chosen options."""
    return tuple(int(item.labels[index]) for item, index in zip(items, chosen, strict=True))

"""The bottleneck knapsack: minimize the largest loss of any item."""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from lrzip.ranks.knapsack import Allocation, Numbers, Options, check_budget, labels_of, sum_of_costs


def minimize_maximum(items: Sequence[Options], budget: int) -> Allocation:
    """Return the choice with the least maximum of losses within a budget. The result is exact.

    The threshold on losses is found by bisection over all losses that occur. The remaining budget then lowers the
    items with the largest losses, one option at a time.

    Args:
        items: Options of each item.
        budget: Upper limit on the sum of costs.

    Raises:
        ValueError: Even the cheapest options cost more than the budget.
    """
    check_budget(items, budget)
    chosen = _cheapest_below(items, _least_threshold(items, budget))
    _spend_remainder(items, chosen, budget - sum_of_costs(items, chosen))
    loss = max((float(item.losses[index]) for item, index in zip(items, chosen, strict=True)), default=0.0)
    return Allocation(labels_of(items, chosen), sum_of_costs(items, chosen), loss, loss)


def _least_threshold(items: Sequence[Options], budget: int) -> float:
    """Return the least loss such that choosing no option with a larger loss is within the budget."""
    thresholds = np.unique(np.concatenate([item.losses for item in items])) if items else np.zeros(1)
    low, high = -1, len(thresholds) - 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = sum_of_costs(items, _cheapest_below(items, thresholds[middle])) <= budget
        low, high = (low, middle) if fits else (middle, high)
    return float(thresholds[high])


def _cheapest_below(items: Sequence[Options], threshold: float) -> Numbers:
    """Return the indices of the cheapest options with losses of at most a threshold; the last ones if none has."""
    return np.array(
        [min(int(np.searchsorted(-item.losses, -threshold)), len(item.losses) - 1) for item in items], dtype=np.int64
    )


def _spend_remainder(items: Sequence[Options], chosen: Numbers, remainder: int) -> None:
    """Repeatedly move the item with the largest loss to its next option, in place, if that fits the remainder."""
    heap = [(-float(item.losses[at]), index) for index, (item, at) in enumerate(zip(items, chosen, strict=True))]
    heapify(heap)
    while heap:
        _, index = heappop(heap)
        item, at = items[index], int(chosen[index])
        if at + 1 < len(item.costs) and item.costs[at + 1] - item.costs[at] <= remainder:
            remainder -= int(item.costs[at + 1] - item.costs[at])
            chosen[index] = at + 1
            heappush(heap, (-float(item.losses[at + 1]), index))

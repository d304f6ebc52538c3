"""Small knapsack problems, and their exhaustive solution."""

from itertools import product

import numpy as np
from hypothesis import strategies as st

from lrzip.ranks.knapsack import Options


def options(costs: list[int], losses: list[float]) -> Options:
    """Return the Pareto-optimal options, labeled by their positions."""
    return Options.of(np.array(costs, dtype=np.int64), np.array(losses), np.arange(len(costs)))


@st.composite
def problems(draw: st.DrawFn) -> list[Options]:
    """Draw one to five items of one to six options, whose losses need not be a convex function of costs."""
    loss = st.one_of(st.integers(0, 9).map(float), st.floats(0, 10, width=32))
    option = st.tuples(st.integers(0, 40), loss)
    drawn = draw(st.lists(st.lists(option, min_size=1, max_size=6), min_size=1, max_size=5))
    return [options([cost for cost, _ in item], [value for _, value in item]) for item in drawn]


def least_loss(items: list[Options], budget: int, *, by_maximum: bool) -> float:
    """Return the least loss within a budget by enumeration of all choices."""
    pairs = [list(zip(item.costs.tolist(), item.losses.tolist(), strict=True)) for item in items]
    within = [chosen for chosen in product(*pairs) if sum(cost for cost, _ in chosen) <= budget]
    return float(min((max if by_maximum else sum)(loss for _, loss in chosen) for chosen in within))


def chosen_options(items: list[Options], labels: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """Return the costs and the losses of the options with these labels."""
    indices = [int(np.flatnonzero(item.labels == label)[0]) for item, label in zip(items, labels, strict=True)]
    costs = [int(item.costs[index]) for item, index in zip(items, indices, strict=True)]
    return costs, [float(item.losses[index]) for item, index in zip(items, indices, strict=True)]

"""The allocator against every choice there is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrzip.ranks.knapsack as module
from lrzip.ranks.knapsack import Options, least_cost, least_maximum, least_sum

EPS = float(np.finfo(np.float64).eps)


def options(costs: list[int], losses: list[float]) -> Options:
    return Options.of(np.array(costs, dtype=np.int64), np.array(losses), np.arange(len(costs)))


@st.composite
def items(draw: st.DrawFn) -> list[Options]:
    """Up to five items of up to six options, with losses that are no convex function of costs."""
    loss = st.one_of(st.integers(0, 9).map(float), st.floats(0, 10, width=32))
    option = st.tuples(st.integers(0, 40), loss)
    drawn = draw(st.lists(st.lists(option, min_size=1, max_size=6), min_size=1, max_size=5))
    return [options([cost for cost, _ in item], [value for _, value in item]) for item in drawn]


def best(choices: list[Options], budget: int, *, by_maximum: bool) -> float:
    """Return the least loss by trying everything."""
    pairs = [list(zip(item.costs.tolist(), item.losses.tolist(), strict=True)) for item in choices]
    within = [picked for picked in product(*pairs) if sum(cost for cost, _ in picked) <= budget]
    return float(min((max if by_maximum else sum)(loss for _, loss in picked) for picked in within))


def spent(choices: list[Options], labels: tuple[int, ...]) -> tuple[int, list[float]]:
    at = [int(np.flatnonzero(item.labels == label)[0]) for item, label in zip(choices, labels, strict=True)]
    costs = [int(item.costs[index]) for item, index in zip(choices, at, strict=True)]
    return sum(costs), [float(item.losses[index]) for item, index in zip(choices, at, strict=True)]


@given(choices=items(), extra=st.integers(0, 150))
def test_small_sums_are_the_best_there_are(choices: list[Options], extra: int) -> None:
    budget = least_cost(choices) + extra
    found = least_sum(choices, budget)
    cost, losses = spent(choices, found.labels)
    assert found.cost == cost <= budget
    assert found.loss == pytest.approx(sum(losses), abs=1e-12)
    optimum = best(choices, budget, by_maximum=False)
    # Prices and sums of 5 losses of at most 10 round by a few units each.
    slack = 100 * EPS * 50
    assert found.bound - slack <= optimum <= found.loss + slack
    assert found.loss <= optimum + slack


@given(choices=items(), extra=st.integers(0, 150))
def test_sums_are_within_their_gap_when_the_search_is_cut_short(choices: list[Options], extra: int) -> None:
    budget = least_cost(choices) + extra
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SUMS", 0)
        patch.setattr(module, "_FEWEST_STATES", 1)
        found = least_sum(choices, budget)
    optimum = best(choices, budget, by_maximum=False)
    slack = 100 * EPS * 50
    assert found.cost <= budget
    assert found.bound - slack <= optimum <= found.loss + slack


@given(choices=items(), extra=st.integers(0, 150))
def test_maxima_are_the_best_there_are(choices: list[Options], extra: int) -> None:
    budget = least_cost(choices) + extra
    found = least_maximum(choices, budget)
    cost, losses = spent(choices, found.labels)
    assert found.cost == cost <= budget
    assert found.loss == found.bound == max(losses) == best(choices, budget, by_maximum=True)


@given(choices=items(), extra=st.integers(0, 150))
def test_what_is_left_of_a_maximum_buys_no_step_of_any_item(choices: list[Options], extra: int) -> None:
    budget = least_cost(choices) + extra
    found = least_maximum(choices, budget)
    left = budget - found.cost
    for item, label in zip(choices, found.labels, strict=True):
        at = int(np.flatnonzero(item.labels == label)[0])
        assert at + 1 == len(item.costs) or item.costs[at + 1] - item.costs[at] > left


@pytest.mark.parametrize("by_maximum", [False, True])
@given(choices=items(), extra=st.tuples(st.integers(0, 150), st.integers(0, 150)))
def test_a_larger_budget_never_loses_more(by_maximum: bool, choices: list[Options], extra: tuple[int, int]) -> None:
    allocate = least_maximum if by_maximum else least_sum
    low, high = (allocate(choices, least_cost(choices) + more).loss for more in sorted(extra))
    assert high <= low + 100 * EPS * 50


@pytest.mark.parametrize("allocate", [least_sum, least_maximum])
def test_a_budget_that_nothing_meets_is_refused(allocate: object) -> None:
    assert callable(allocate)
    with pytest.raises(ValueError, match="cost 3, the budget is 2"):
        allocate([options([3, 5], [1.0, 0.0])], 2)
    assert allocate([], 0).labels == ()


def test_options_that_cost_and_lose_more_than_another_are_out() -> None:
    found = options([5, 1, 3, 3, 9], [2.0, 4.0, 4.0, 3.0, 2.0])
    assert found.labels.tolist() == [1, 3, 0]


@pytest.mark.parametrize("layers", [40, 120])
def test_many_layers_are_solved_to_a_small_gap_and_little_is_left(layers: int) -> None:
    generator = np.random.default_rng(0)
    choices = []
    for _ in range(layers):
        rows, columns = generator.choice([256, 512, 1024], 2)
        ranks = np.arange(1, rows * columns // (rows + columns))
        losses = np.exp(-ranks * generator.uniform(2, 8) / len(ranks)) + generator.uniform(0, 0.05)
        costs = np.append(ranks * (rows + columns), rows * columns)
        choices.append(Options.of(costs, np.append(losses, 0.0), np.append(ranks, 0)))
    whole = sum(int(item.costs[-1]) for item in choices)
    for share in (0.2, 0.5, 0.8):
        found = least_sum(choices, int(share * whole))
        assert found.loss - found.bound <= 1e-3 * found.loss
        assert 0 <= share * whole - found.cost <= 0.005 * whole

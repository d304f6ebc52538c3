import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrzip.ranks.minimize_sum as module
from lrzip.ranks.knapsack import Options, least_cost
from lrzip.ranks.minimize_sum import minimize_sum
from tests.support.knapsacks import chosen_options, least_loss, options, problems

EPS = float(np.finfo(np.float64).eps)
# Prices and sums of 5 losses of at most 10 round by a few units each.
SLACK = 100 * EPS * 50


@given(items=problems(), extra=st.integers(0, 150))
def test_small_problems_are_solved_exactly(items: list[Options], extra: int) -> None:
    budget = least_cost(items) + extra
    found = minimize_sum(items, budget)
    costs, losses = chosen_options(items, found.labels)
    assert found.cost == sum(costs) <= budget
    assert found.loss == pytest.approx(sum(losses), abs=1e-12)
    optimum = least_loss(items, budget, by_maximum=False)
    assert found.bound - SLACK <= optimum <= found.loss + SLACK
    assert found.loss <= optimum + SLACK


@given(items=problems(), extra=st.integers(0, 150))
def test_the_optimum_is_between_bound_and_loss_where_the_search_is_truncated(items: list[Options], extra: int) -> None:
    budget = least_cost(items) + extra
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_SUMS", 0)
        patch.setattr(module, "_MIN_STATES", 1)
        found = minimize_sum(items, budget)
    optimum = least_loss(items, budget, by_maximum=False)
    assert found.cost <= budget
    assert found.bound - SLACK <= optimum <= found.loss + SLACK


@given(items=problems(), extra=st.tuples(st.integers(0, 150), st.integers(0, 150)))
def test_a_larger_budget_never_loses_more(items: list[Options], extra: tuple[int, int]) -> None:
    low, high = (minimize_sum(items, least_cost(items) + more).loss for more in sorted(extra))
    assert high <= low + SLACK


@given(
    items=problems(),
    scales=st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 12)), min_size=5, max_size=5),
    exponent=st.integers(-9, 9),
)
def test_layers_of_any_sizes_are_solved_where_the_budget_is_met_exactly(
    items: list[Options], scales: list[tuple[int, int]], exponent: int
) -> None:
    # Losses and costs of one item may be smaller than the rounding errors of another's.
    items = [
        Options(item.costs * 3**cost, item.losses * 10.0**loss, item.labels)
        for item, (loss, cost) in zip(items, scales, strict=False)
    ]
    # The best choice at a price leaves no gap between the least loss and its bound.
    budget = sum(int(item.costs[np.argmin(item.losses + 10.0**exponent * item.costs)]) for item in items)
    found = minimize_sum(items, budget)
    optimum = least_loss(items, budget, by_maximum=False)
    largest = sum(float(item.losses[0]) for item in items)
    assert found.cost <= budget
    assert found.bound <= optimum + 1e-15 * largest
    assert found.loss <= optimum * (1 + 1e-9) + 1e-11 * largest


def test_a_budget_below_the_cheapest_options_is_refused() -> None:
    with pytest.raises(ValueError, match="cost 3, the budget is 2"):
        minimize_sum([options([3, 5], [1.0, 0.0])], 2)


def test_no_items_cost_nothing() -> None:
    assert minimize_sum([], 0).labels == ()


@pytest.mark.parametrize("layers", [40, 120])
def test_many_layers_are_solved_to_a_small_gap_and_use_the_budget(layers: int) -> None:
    generator = np.random.default_rng(0)
    items = []
    for _ in range(layers):
        rows, columns = generator.choice([256, 512, 1024], 2)
        ranks = np.arange(1, rows * columns // (rows + columns))
        losses = np.exp(-ranks * generator.uniform(2, 8) / len(ranks)) + generator.uniform(0, 0.05)
        costs = np.append(ranks * (rows + columns), rows * columns)
        items.append(Options.of(costs, np.append(losses, 0.0), np.append(ranks, 0)))
    dense = sum(int(item.costs[-1]) for item in items)
    for share in (0.2, 0.5, 0.8):
        found = minimize_sum(items, int(share * dense))
        assert found.loss - found.bound <= 1e-3 * found.loss
        assert 0 <= share * dense - found.cost <= 0.005 * dense

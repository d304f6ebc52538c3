import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrzip.ranks.knapsack import Allocation, Options, check_budget, least_cost
from tests.support.knapsacks import options, problems


def test_dominated_options_are_dropped() -> None:
    found = options([5, 1, 3, 3, 9], [2.0, 4.0, 4.0, 3.0, 2.0])
    assert found.labels.tolist() == [1, 3, 0]
    assert found.costs.tolist() == [1, 3, 5]
    assert found.losses.tolist() == [4.0, 3.0, 2.0]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12),
)
def test_pareto_front_is_strictly_monotonic_and_dominates_the_rest(pairs: list[tuple[int, int]]) -> None:
    found = options([cost for cost, _ in pairs], [float(loss) for _, loss in pairs])
    assert (np.diff(found.costs) > 0).all()
    assert (np.diff(found.losses) < 0).all()
    front = list(zip(found.costs.tolist(), found.losses.tolist(), strict=True))
    assert set(front) <= set(pairs)
    assert all(any(c <= cost and d <= loss for c, d in front) for cost, loss in pairs)


def test_the_first_options_are_the_cheapest() -> None:
    assert options([1, 3, 5], [4.0, 3.0, 2.0]).first(2).labels.tolist() == [0, 1]


@given(items=problems())
def test_the_cheapest_options_meet_a_budget_of_the_least_cost_and_no_smaller_one(items: list[Options]) -> None:
    least = sum(min(item.costs.tolist()) for item in items)
    assert least_cost(items) == least
    check_budget(items, least)
    with pytest.raises(ValueError, match=f"cost {least}, the budget is {least - 1}"):
        check_budget(items, least - 1)


def test_an_allocation_sums_costs_and_losses_and_its_bound_is_never_above_its_loss() -> None:
    items = [options([1, 3], [4.0, 1.0]), options([2, 5], [0.5, 0.25])]
    chosen = np.array([1, 0])
    assert Allocation.of_sum(items, chosen) == Allocation((1, 0), 5, 1.5, 1.5)
    assert Allocation.of_sum(items, chosen, bound=1.25).bound == 1.25
    assert Allocation.of_sum(items, chosen, bound=2.0).bound == 1.5

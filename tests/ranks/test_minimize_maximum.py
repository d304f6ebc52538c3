import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrzip.ranks.knapsack import Options, least_cost
from lrzip.ranks.minimize_maximum import minimize_maximum
from tests.support.knapsacks import chosen_options, least_loss, options, problems


@given(items=problems(), extra=st.integers(0, 150))
def test_the_maximum_is_the_least_there_is(items: list[Options], extra: int) -> None:
    budget = least_cost(items) + extra
    found = minimize_maximum(items, budget)
    costs, losses = chosen_options(items, found.labels)
    assert found.cost == sum(costs) <= budget
    assert found.loss == found.bound == max(losses) == least_loss(items, budget, by_maximum=True)


@settings(derandomize=True)
@given(items=problems(), extra=st.integers(0, 150))
def test_the_remainder_is_too_small_for_a_step_of_any_item(items: list[Options], extra: int) -> None:
    budget = least_cost(items) + extra
    found = minimize_maximum(items, budget)
    remainder = budget - found.cost
    for item, label in zip(items, found.labels, strict=True):
        index = int(np.flatnonzero(item.labels == label)[0])
        assert index + 1 == len(item.costs) or item.costs[index + 1] - item.costs[index] > remainder


def test_the_remainder_goes_to_the_largest_losses_first() -> None:
    # The first item decides the maximum. What is left, 4, is enough for one step of the second or of the third.
    items = [options([5, 100], [9.0, 0.0]), options([1, 4], [6.0, 5.0]), options([1, 4], [7.0, 5.0])]
    assert minimize_maximum(items, 5 + 1 + 1 + 4).labels == (0, 0, 1)
    assert minimize_maximum(items, 5 + 1 + 1 + 6).labels == (0, 1, 1)


@given(items=problems(), extra=st.tuples(st.integers(0, 150), st.integers(0, 150)))
def test_a_larger_budget_never_loses_more(items: list[Options], extra: tuple[int, int]) -> None:
    low, high = (minimize_maximum(items, least_cost(items) + more).loss for more in sorted(extra))
    assert high <= low


def test_a_budget_below_the_cheapest_options_is_refused() -> None:
    with pytest.raises(ValueError, match="cost 3, the budget is 2"):
        minimize_maximum([options([3, 5], [1.0, 0.0])], 2)


def test_no_items_cost_nothing() -> None:
    assert minimize_maximum([], 0).labels == ()

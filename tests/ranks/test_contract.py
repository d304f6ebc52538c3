"""What every rank rule must keep."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrzip.errors import UsageError
from lrzip.layers import Layer, TensorSpec
from lrzip.ranks import RULES, Candidate, RankRule, parse_rule
from lrzip.spectrum import Spectrum
from tests.matrices import slow

# Each rule with targets from the loosest to the strictest.
TARGETS: dict[str, list[float]] = {
    "energy": [0.1, 0.5, 0.9, 0.99, 1.0],
    "ratio": [1.01, 1.5, 2, 4, 50][::-1],
    "rank": [1, 4, 16, 400],
}


def candidate(m: int, n: int, name: str = "x") -> Candidate:
    layer = Layer(name, name, "linear", TensorSpec(f"{name}.weight", (m, n), "float32", 4 * m * n), None)
    spectrum = Spectrum(slow(min(m, n)), (m, n), torch.finfo(torch.float32).eps)
    return Candidate(layer, (min(m, n),), lambda ranks: ranks[0] * (m + n), (spectrum,))


def test_every_rule_has_targets_to_be_tested_with() -> None:
    assert TARGETS.keys() == set(RULES)


@pytest.mark.parametrize("name", RULES)
@given(shape=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_ranks_are_within_bounds_and_grow_with_the_target(name: str, shape: tuple[int, int]) -> None:
    make: Callable[[float], RankRule] = RULES[name]
    found = [make(target).choose([candidate(*shape)]).get("x", (0,)) for target in TARGETS[name]]
    assert all(len(ranks) == 1 and 0 <= ranks[0] <= min(shape) for ranks in found)
    assert found == sorted(found)


@pytest.mark.parametrize("name", RULES)
def test_the_choice_for_a_layer_does_not_depend_on_order(name: str) -> None:
    rule: RankRule = RULES[name](TARGETS[name][1])
    layers = [candidate(30, 20, "a"), candidate(8, 50, "b"), candidate(40, 40, "c")]
    assert rule.choose(layers) == rule.choose(layers[::-1])


@given(shape=st.tuples(st.integers(1, 90), st.integers(1, 90)), ratio=st.floats(1.01, 30))
def test_a_ratio_is_the_nearest_rank_that_is_not_above(shape: tuple[int, int], ratio: float) -> None:
    m, n = shape
    ranks = RULES["ratio"](ratio).choose([candidate(m, n)]).get("x", (0,))
    assert ranks[0] * (m + n) <= m * n / ratio
    assert ranks[0] == min(m, n) or (ranks[0] + 1) * (m + n) > int(m * n / ratio)


@given(shape=st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_break_even_is_the_largest_rank_that_still_saves(shape: tuple[int, int]) -> None:
    m, n = shape
    found = candidate(m, n)
    rank = found.break_even_rank
    assert rank * (m + n) < m * n
    assert (rank + 1) * (m + n) >= m * n
    assert rank == 0 or found.saves((rank,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy:0", "above 0 and at most 1, got 0"),
        ("energy:1.5", "got 1.5"),
        ("energy:nan", "got nan"),
        ("energy:-inf", "got -inf"),
        ("ratio:1", "above 1, got 1"),
        ("ratio:0.5", "got 0.5"),
        ("ratio:inf", "got inf"),
        ("rank:0", "whole number above 0, got 0"),
        ("rank:2.5", "got 2.5"),
        ("rank:nan", "got nan"),
        ("rank:", "needs a number"),
        ("rank", "needs a number"),
        ("size:3", "Unknown rule"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_rule(text)


@pytest.mark.parametrize(
    ("text", "shown"), [("energy:0.8", "energy 0.8"), ("ratio:4", "ratio 4"), ("rank:16", "rank 16")]
)
def test_rules_say_what_they_are(text: str, shown: Any) -> None:
    assert str(parse_rule(text)) == shown

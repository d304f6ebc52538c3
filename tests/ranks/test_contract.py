"""The contract of rank rules, over all of the registry."""

import re
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.kinds import CONVOLUTIONS
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.spectrum import Spectrum
from lrzip.decompositions.tucker import Tucker
from lrzip.linalg.svd import Solver
from lrzip.pipeline.survey import candidate_of
from lrzip.ranks import RULES, Context, Meter, parse_rule
from tests.support.candidates import EPS, candidate, choose

# Targets of each rule from the strictest to the loosest; a rule without a number has one target.
TARGETS: dict[str, list[str]] = {
    "energy": ["energy:0.1", "energy:0.5", "energy:0.9", "energy:0.99", "energy:1"],
    "ratio": ["ratio:50", "ratio:4", "ratio:2", "ratio:1.5", "ratio:1.01"],
    "rank": ["rank:1", "rank:4", "rank:16", "rank:400"],
    "error": ["error:0.9", "error:spectral:0.5", "error:0.3", "error:spectral:0.1", "error:0.01"],
    "vbmf": ["vbmf"],
    "budget": ["budget:params=20%", "budget:params=50%", "budget:params=90%", "budget:params=100%"],
    "pca-energy": ["pca-energy:speedup=10", "pca-energy:speedup=4", "pca-energy:speedup=2", "pca-energy:speedup=1.01"],
}


def chosen(target: str, shape: tuple[int, int]) -> int:
    """Return the rank: 0 if no rank is small enough, the full rank if a budget keeps the layer dense."""
    rule = parse_rule(target)
    try:
        ranks = choose(rule, [candidate(*shape)]).ranks
    except LrzipError as error:
        assert re.search("Give at (least params|most speedup)=", str(error))
        return 0
    (rank,) = ranks.get("x", (min(shape) if rule.unit else 0,))
    return rank


def test_every_rule_has_targets() -> None:
    assert TARGETS.keys() == set(RULES)


@pytest.mark.parametrize("name", RULES)
@given(shape=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_ranks_are_within_bounds(name: str, shape: tuple[int, int]) -> None:
    assert TARGETS[name]
    for target in TARGETS[name]:
        assert 0 <= chosen(target, shape) <= min(shape)


@pytest.mark.parametrize("name", [name for name, targets in TARGETS.items() if len(targets) > 1])
@given(shape=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_ranks_grow_with_the_target(name: str, shape: tuple[int, int]) -> None:
    found = [chosen(target, shape) for target in TARGETS[name]]
    assert found == sorted(found)
    assert min(shape) < 8 or len(set(found)) > 1


@pytest.mark.parametrize("name", RULES)
def test_the_choice_for_a_layer_does_not_depend_on_the_order_of_layers(name: str) -> None:
    rule = parse_rule(TARGETS[name][-1])
    layers = [candidate(30, 20, "a"), candidate(8, 50, "b"), candidate(40, 40, "c")]
    assert choose(rule, layers) == choose(rule, layers[::-1])


@pytest.mark.parametrize("name", RULES)
def test_only_rules_with_a_unit_report_the_use_of_a_budget(name: str) -> None:
    rule = parse_rule(TARGETS[name][-1])
    budget = choose(rule, [candidate(30, 20)]).budget
    assert (budget.unit if budget else None) == rule.unit


def test_a_rounded_budget_still_offers_the_largest_rank() -> None:
    """All 6 output channels matter and 4 of 16 input channels: 6 is no multiple of 4, but the largest rank."""
    shape = (6, 16, 3, 3)
    layer = Layer("x", "x", CONVOLUTIONS[2], TensorSpec("x.weight", shape, "float32", 4 * prod(shape)), None)
    outer, inner = torch.ones(6, dtype=torch.float64), torch.tensor([1.0] * 4 + [1e-3] * 12, dtype=torch.float64)
    spectra = Spectrum(outer, (6, 144), EPS), Spectrum(inner, (16, 54), EPS)
    found = candidate_of(layer, "tucker", Tucker(Solver()), spectra)
    meter = Meter(layer.weight.numel, lambda _, pick: found.parameters(pick.ranks) if pick else layer.weight.numel)
    ranks = parse_rule(f"budget:params={found.parameters((6, 4))}").choose([found], Context(meter, round_to=4)).ranks
    assert ranks == {"x": (6, 4)}


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
        ("energy", "`energy` needs a number, got ``. Write `energy:X`"),
        ("ratio:four", "`ratio` needs a number, got `four`"),
        ("vbmf:3", "`vbmf` takes no number, got `3`. Write `vbmf` alone"),
        ("vbmf:", "`vbmf` takes no number"),
        ("size:3", "Unknown rule"),
        ("size:3", "energy:X, ratio:X, rank:X, error:X, vbmf, budget:X, pca-energy:X"),
        ("error:0", "above 0 and below 1, got 0"),
        ("error:1", "got 1"),
        ("error:spectral:nan", "got nan"),
        ("error", "`error` needs a number, such as 0.1, or spectral:0.1"),
        ("error:small", "got `small`"),
        ("error:nuclear:0.1", "got `nuclear:0.1`"),
        ("error:spectral:", "got `spectral:`"),
        ("error:0.1:spectral", "got `0.1:spectral`"),
        ("pca-energy:4", "such as speedup=4, got `4`"),
        ("pca-energy", "such as speedup=4, got ``"),
        ("pca-energy:speedup=fast", "got `speedup=fast`"),
        ("pca-energy:speedup=1", "`pca-energy:speedup` must be above 1, got 1"),
        ("pca-energy:speedup=inf", "got inf"),
        ("budget", "`budget` takes params=…, nbytes=…, macs=…, latency=…, such as `params=50%`, got ``"),
        ("budget:50%", "got `50%`"),
        ("budget:size=50%", "got `size=50%`"),
        ("budget:params=", "such as 50%, 1.2M or 120000, got ``"),
        ("budget:params=half", "got `half`"),
        ("budget:params=10MB", "got `10MB`"),
        ("budget:params=-5%", "got `-5%`"),
        ("budget:params=nan", "got `nan`"),
        ("budget:params=1e6", "got `1e6`"),
        ("budget:nbytes=10M", "such as 50%, 10MB or 64KiB, got `10M`"),
        ("budget:params=100.1%", "`budget=params=100.1%` is more than all there is"),
        ("budget:params=10%,20%", "names several budgets"),
        ("budget:latency=5", "`budget=latency` takes an amount such as 60%, 5ms or 800us, got `5`"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_rule(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("energy:0.8", "energy 0.8"),
        ("ratio:4", "ratio 4"),
        ("rank:16", "rank 16"),
        ("error:0.1", "error 0.1"),
        ("error:spectral:0.1", "error spectral:0.1"),
        ("pca-energy:speedup=4", "pca-energy speedup=4"),
        ("vbmf", "vbmf"),
        ("budget:params=50%", "budget params=50%"),
        ("budget:nbytes=1.5kB", "budget nbytes=1,500"),
    ],
)
def test_a_rule_is_shown_with_its_number(text: str, shown: Any) -> None:
    assert str(parse_rule(text)) == shown

"""Rules over layers with several decompositions, here the SVD of weights that differ in shape or spectrum."""

from dataclasses import replace

import torch

from lrzip.ranks import Candidate, Context, Pick
from lrzip.ranks.budget import Budget
from lrzip.ranks.energy import Energy
from lrzip.ranks.fixed import FixedRank
from lrzip.ranks.ratio import Ratio
from tests.support.candidates import calibrated, choose

# 5 of 20 singular values carry all energy, or 1 of 30, at a cost per rank of 50 or 100 elements of 600.
STEEP = replace(calibrated(torch.tensor([1.0] * 5 + [0.0] * 15, dtype=torch.float64), (30, 20)), decomposition="wide")
LONE = replace(
    calibrated(torch.tensor([5.0**0.5] + [0.0] * 29, dtype=torch.float64), (40, 60)),
    layer=STEEP.layer,
    parameters=lambda ranks: 100 * ranks[0],
    decomposition="costly",
)
BOTH = replace(STEEP, others=(LONE,))


def picked(found: object) -> Pick:
    assert isinstance(found, dict)
    return found["x"]  # type: ignore[no-any-return]


def test_an_energy_is_reached_by_the_decomposition_with_the_fewest_parameters() -> None:
    assert picked(choose(Energy(0.99), [BOTH]).picks) == Pick("costly", (1,))
    assert picked(choose(Energy(0.2), [BOTH]).picks) == Pick("wide", (1,))


def test_a_decomposition_that_saves_nothing_is_chosen_only_if_none_saves() -> None:
    heavy = replace(LONE, parameters=lambda ranks: 700 * ranks[0])
    assert picked(choose(Energy(0.99), [replace(STEEP, others=(heavy,))]).picks) == Pick("wide", (5,))
    heavier = replace(STEEP, parameters=lambda ranks: 601 * ranks[0])
    assert picked(choose(Energy(0.99), [replace(heavier, others=(heavy,))]).picks) == Pick("costly", (1,))


def test_a_cost_is_spent_on_the_decomposition_with_the_least_loss() -> None:
    assert picked(choose(Ratio(6), [BOTH]).picks) == Pick("costly", (1,))
    assert picked(choose(FixedRank(1), [BOTH]).picks) == Pick("costly", (1,))
    assert picked(choose(FixedRank(1), [replace(LONE, others=(STEEP,))]).picks) == Pick("costly", (1,))


def test_a_budget_covers_the_options_of_all_decompositions() -> None:
    def cost(_: object, pick: Pick | None) -> int:
        return BOTH.by(pick.decomposition).parameters(pick.ranks) if pick else 600

    def spent(limit: int, candidate: Candidate = BOTH) -> Pick:
        from lrzip.ranks import Meter

        context = Context(Meter(600, cost), round_to=1)
        return picked(Budget("params", limit, is_share=False).choose([candidate], context).picks)

    assert spent(100) == Pick("costly", (1,))
    assert spent(99) == Pick("wide", (1,))
    assert spent(100, STEEP) == Pick("wide", (2,))
    assert spent(300, replace(LONE, others=(STEEP,))) == Pick("costly", (1,))

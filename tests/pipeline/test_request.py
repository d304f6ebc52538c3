from pathlib import Path
from typing import Any

import pytest

from lrzip.core.errors import UsageError
from lrzip.core.options import Factoring, NamedTarget, Selection, Target
from lrzip.pipeline.request import request_of, target_of
from lrzip.ranks.energy import Energy
from lrzip.ranks.error import Error
from lrzip.ranks.vbmf import VBMF


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ((Target(energy=0.9),), Energy(0.9)),
        ((Target(vbmf=True),), VBMF()),
        ((Target(error=0.1),), Error(0.1)),
        ((Target(error="spectral:0.1"),), Error(0.1, "spectral")),
        ((Target(), NamedTarget(rank_rule="energy:0.5")), Energy(0.5)),
        ((Target(), NamedTarget(plan="plan.json")), Path("plan.json")),
    ],
)
def test_the_target_is_the_option_that_is_given(groups: tuple[Any, ...], expected: object) -> None:
    assert target_of(*groups) == expected


def test_a_number_of_zero_is_given_and_out_of_range() -> None:
    with pytest.raises(UsageError, match="`energy` must be above 0 and at most 1, got 0"):
        target_of(Target(energy=0))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((Target(),), "of `energy`, `ratio`, `rank`, `error`, `vbmf` and `budget`, got none"),
        ((Target(), NamedTarget()), "`budget`, `rank_rule` and `plan`, got none"),
        ((Target(energy=0.9, vbmf=True),), "got `energy` and `vbmf`"),
    ],
)
def test_there_is_exactly_one_target(groups: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        target_of(*groups)


@pytest.mark.parametrize(
    "others",
    [
        {"selection": Selection(only=["fc"])},
        {"selection": Selection(skip=["fc"])},
        {"factoring": Factoring(dtype="float16")},
        {"factoring": Factoring(round_to=4)},
        {"factoring": Factoring(objective="energy")},
        {"factoring": Factoring(decomposition="tucker")},
        {"layers": {"fc": "keep"}},
    ],
)
def test_a_plan_file_decides_alone(others: dict[str, Any]) -> None:
    arguments = {"selection": Selection(), "factoring": Factoring(), **others}
    with pytest.raises(UsageError, match="`plan` decides on every layer"):
        request_of(Path("plan.json"), **arguments)
    assert request_of(Energy(0.5), **arguments).target == Energy(0.5)


def test_a_plan_file_goes_with_options_of_the_solver() -> None:
    request = request_of(Path("plan.json"), Selection(), Factoring(svd="exact", seed=3, force_factorize=True))
    assert request.solver.method == "exact"
    assert request.unit is None


def test_only_an_objective_without_a_name_follows_the_calibration() -> None:
    unnamed = request_of(Energy(0.5), Selection(), Factoring())
    named = request_of(Energy(0.5), Selection(), Factoring(objective="energy"))
    assert unnamed.with_default_objective("fisher").objective.name == "fisher"
    assert named.with_default_objective("fisher").objective.name == "energy"

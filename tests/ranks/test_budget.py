"""Budgets, from the option to the plan."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import lrzip
from lrzip.core.errors import LrzipError, UnknownName, UsageError
from lrzip.ranks.objectives import OBJECTIVES
from tests.support.checkpoints import BUILDERS
from tests.support.networks import Net, ResNet, Zoo, seeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def reasons(report: Any) -> dict[str, str]:
    return {keep.name: keep.reason for keep in report.plan.keep}


def ranks(report: Any) -> dict[str, int]:
    return {decision.layer.name: decision.ranks[0] for decision in report.plan.factorize}


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_format_meets_its_budget(kind: str, tmp_path: Path) -> None:
    path = BUILDERS[kind](tmp_path)
    report = lrzip.compress(path, tmp_path / "out", budget="params=60%")
    spent = report.plan.budget
    assert spent
    assert spent.used == report.parameters_after <= spent.limit == int(0.6 * report.parameters_before)
    assert spent.dense == report.parameters_before
    assert spent.predicted_loss == pytest.approx(sum(d.predicted_loss or 0 for d in report.plan.factorize))


def test_predicted_losses_are_the_squared_errors_of_the_factors(path: Path, tmp_path: Path) -> None:
    report = lrzip.compress(path, tmp_path / "a.pt", budget="params=50%", objective="relative-energy")
    assert report.results
    for result in report.results:
        assert result.decision.predicted_loss == pytest.approx(result.error**2, rel=1e-3)


def test_no_other_ranks_are_better(path: Path) -> None:
    report = lrzip.compress(path, budget="params=80%", skip=["fc1"], objective="relative-energy", dry_run=True)
    spent = report.plan.budget
    assert spent
    assert spent.bound == pytest.approx(spent.predicted_loss, rel=1e-9)
    state = torch.load(path, weights_only=True)
    options: list[list[tuple[int, float]]] = []
    for name in ("conv1", "conv2", "fc2"):
        weight = state[f"{name}.weight"].double().flatten(1)
        squares = torch.linalg.svdvals(weight).square()
        tails = [float(squares[rank:].sum() / squares.sum()) for rank in range(1, len(squares))]
        chains = [(rank * sum(weight.shape), tail) for rank, tail in enumerate(tails, 1)]
        options.append([(weight.numel(), 0.0), *(chain for chain in chains if chain[0] < weight.numel())])
    fixed = report.parameters_before - sum(option[0][0] for option in options)
    within = [
        sum(loss for _, loss in picked)
        for picked in product(*options)
        if fixed + sum(cost for cost, _ in picked) <= spent.limit
    ]
    assert spent.predicted_loss == pytest.approx(min(within), rel=1e-6)


def test_no_other_pairs_of_ranks_are_better(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (6, 4, 3, 3), "b.weight": (5, 6, 3, 3)}
    weights = {n: torch.rand(shape, dtype=torch.float64, generator=generator) + 1 for n, shape in shapes.items()}
    torch.save(weights, tmp_path / "net.pt")
    options: Any = {"decomposition": "tucker", "objective": "relative-energy", "dry_run": True}
    report = lrzip.compress(tmp_path / "net.pt", budget="params=50%", **options)
    spent = report.plan.budget
    assert spent
    choices: list[list[tuple[int, float]]] = []
    for weight in weights.values():
        out, inner = weight.shape[:2]
        tails = []
        for unfolding in (weight.flatten(1), weight.transpose(0, 1).flatten(1)):
            squares = torch.linalg.svdvals(unfolding.double()).square()
            tails.append([float(squares[rank:].sum() / squares.sum()) for rank in range(1, len(squares) + 1)])
        pairs = [
            (a * out + 9 * a * b + b * inner, tails[0][a - 1] + tails[1][b - 1])
            for a, b in product(range(1, out + 1), range(1, inner + 1))
        ]
        choices.append([(weight.numel(), 0.0), *(pair for pair in pairs if pair[0] < weight.numel())])
    within = [sum(x[1] for x in picked) for picked in product(*choices) if sum(x[0] for x in picked) <= spent.limit]
    assert spent.predicted_loss == pytest.approx(min(within), rel=1e-6)
    assert {len(decision.ranks) for decision in report.plan.factorize} == {2}


def test_a_dry_run_plans_the_same_as_a_written_file(path: Path, tmp_path: Path) -> None:
    planned = lrzip.compress(path, budget="params=50%", dry_run=True)
    written = lrzip.compress(path, tmp_path / "a.pt", budget="params=50%")
    assert planned.plan == written.plan
    (tmp_path / "plan.json").write_text(json.dumps(planned.plan.to_dict()))
    lrzip.compress(path, tmp_path / "b.pt", plan=tmp_path / "plan.json")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_a_plan_file_holds_predicted_losses_and_the_use_of_the_budget(path: Path) -> None:
    document = lrzip.compress(path, budget="params=50%", objective="operator-norm", dry_run=True).plan.to_dict()
    losses = [row["predicted_loss"] for row in document["layers"]]
    assert 0 < min(losses) <= max(losses) < 1
    assert document["budget"]["unit"] == "params"
    energy = lrzip.compress(path, energy=0.6, objective="relative-energy", dry_run=True).plan.to_dict()
    assert max(row["predicted_loss"] for row in energy["layers"]) <= 0.4 + 1e-6
    assert "budget" not in energy
    rank = lrzip.compress(path, rank=4, dry_run=True).plan.to_dict()
    assert {"predicted_loss" in row for row in rank["layers"]} == {False}


def test_a_budget_of_everything_keeps_all_layers_dense(path: Path) -> None:
    report = lrzip.compress(path, budget="params=100%", dry_run=True)
    assert not report.plan.factorize
    assert reasons(report)["fc1"] == "kept by budget params=100%"


def test_layers_with_their_own_rule_count_towards_the_budget(path: Path) -> None:
    options: dict[str, Any] = {"layers": {"conv2": "rank:3", "fc2": "keep"}, "skip": ["conv1"]}
    report = lrzip.compress(path, budget="params=40%", dry_run=True, **options)
    assert ranks(report)["conv2"] == 3
    assert reasons(report)["fc2"] == "kept by `--layer`"
    assert report.parameters_after <= 0.4 * report.parameters_before
    left = int(0.4 * report.parameters_before) - report.parameters_after
    assert left < sum(torch.load(path, weights_only=True)["fc1.weight"].shape)  # there is no room for one more rank
    nothing = lrzip.compress(path, budget="params=90%", layers={"*": "rank:2"}, dry_run=True).plan.budget
    assert nothing
    assert (nothing.predicted_loss, nothing.bound) == (0, 0)


def test_ranks_are_multiples_unless_no_multiple_saves(path: Path) -> None:
    for share in (40, 60, 80):
        found = ranks(lrzip.compress(path, budget=f"params={share}%", round_to=4, dry_run=True))
        assert found
        assert all(rank % 4 == 0 for rank in found.values())
    dense = lrzip.compress(path, rank=1, dry_run=True).parameters_before
    assert ranks(lrzip.compress(path, budget=f"params={dense - 80}", only=["fc2"], round_to=8, dry_run=True)) == {
        "fc2": 5  # its break-even is 7, and a rank costs 32
    }


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_larger_budgets_never_lose_more(objective: str, path: Path) -> None:
    points = lrzip.curve(
        path,
        "params=20%,35%,50%,65%,80%,95%,100%",
        objective=objective,
        model=Net(),
        calibrate=torch.randn(32, 3, 16, 16) if objective in ("fisher", "sensitivity") else None,
    ).points
    losses = [point.plan.budget.predicted_loss for point in points if point.plan.budget]
    assert len(losses) == 7
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


def test_a_curve_has_the_plan_of_each_budget(path: Path) -> None:
    shares = (30, 60, 90)
    points = lrzip.curve(path, "params=30%, 60%,params=90%", skip=["conv1"], round_to=2).points
    for share, point in zip(shares, points, strict=True):
        alone = lrzip.compress(path, budget=f"params={share}%", skip=["conv1"], round_to=2, dry_run=True)
        assert alone.plan == point.plan
        assert alone.plan.budget == point.plan.budget


def test_almost_all_of_a_budget_is_used(tmp_path: Path) -> None:
    torch.save(seeded(ResNet).state_dict(), tmp_path / "net.pt")
    points = lrzip.curve(tmp_path / "net.pt", "params=30%,50%,70%,90%").points
    assert len(points) == 4
    for point in points:
        spent = point.plan.budget
        assert spent
        assert 0 <= spent.limit - spent.used <= 0.005 * spent.limit


def test_a_live_network_is_factorized_within_a_budget() -> None:
    model = seeded(Zoo)
    small = lrzip.factorize(model, budget="params=60%", objective="operator-norm")
    counts = [sum(parameter.numel() for parameter in net.parameters()) for net in (small, model)]
    assert counts[0] <= 0.6 * counts[1]
    with pytest.raises(UsageError, match=r"`macs` is for `lrzip\.compress`"):
        lrzip.factorize(model, budget="macs=60%")


def test_exactly_low_rank_weights_lose_nothing(tmp_path: Path) -> None:
    weight = torch.randn(60, 2, dtype=torch.float64) @ torch.randn(2, 50, dtype=torch.float64)
    torch.save({"a.weight": weight, "zero.weight": torch.zeros(40, 30)}, tmp_path / "net.pt")
    report = lrzip.compress(tmp_path / "net.pt", budget=f"params={2 * 110 + 70}", dry_run=True)
    assert ranks(report) == {"a": 2, "zero": 1}
    assert report.plan.budget
    assert report.plan.budget.predicted_loss < 1e-25


@pytest.mark.parametrize(("objective", "said"), [("fisher", "needs a calibration"), ("sensitivity", "Give `model`")])
def test_objectives_of_a_calibration_are_refused_without_one(objective: str, said: str, path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        lrzip.compress(path, budget="params=50%", objective=objective, dry_run=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": "params=1%"},
            r"params=1%` is \d+ parameters, but all that stays dense .* Give at least params=[\d.]+%",
        ),
        ({"budget": "nbytes=10B"}, r"is 10 bytes of tensors, but all that stays dense .* Give at least nbytes="),
        ({"budget": "params=1"}, "is 1 parameters, but"),
        ({"budget": "params=1.2M"}, "is more than the dense checkpoint has: [0-9,]+ parameters"),
        ({"budget": "params=50%", "energy": 0.9}, "got `energy` and `budget`"),
        ({"budget": "params=50%", "force_factorize": True}, "`force_factorize` overrides what a budget decides"),
        ({"budget": "params=50%", "min_speedup": 1.0}, "`min_speedup` overrides what a budget decides"),
        ({"budget": "params=50%", "layers": {"fc1": "budget:params=3%"}}, "`layers` takes no budget"),
        ({"budget": "params=50%", "objective": "magic"}, "Unknown objective `magic`. Choose one of: relative-energy,"),
        ({"budget": "params=20%,30%"}, "names several budgets"),
        ({"plan": "plan.json", "objective": "energy"}, "decides on every layer"),
    ],
)
def test_an_invalid_budget_is_one_line(options: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises(LrzipError, match=message) as caught:
        lrzip.compress(path, **options)
    assert "\n" not in str(caught.value)
    assert [file.name for file in path.parent.iterdir()] == ["net.pt"]


def test_the_smallest_budget_named_in_a_message_can_be_met(path: Path) -> None:
    with pytest.raises(LrzipError) as caught:
        lrzip.compress(path, budget="params=1%", dry_run=True)
    least = str(caught.value).rsplit("params=", 1)[1].rstrip(".")
    assert len(ranks(lrzip.compress(path, budget=f"params={least}", dry_run=True))) == 4


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ("params=10%,nbytes=20%", "mixes units"),
        ("params=10%,,20%", "takes an amount such as 50%"),
        ("params=50%,120%", "Give at most 100%"),
    ],
)
def test_malformed_lists_of_budgets_are_usage_errors(budgets: str, message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        lrzip.curve(path, budgets)
    with pytest.raises(UnknownName, match="Unknown objective"):
        lrzip.curve(path, "params=50%", objective="magic")


def test_rounded_ranks_may_be_the_largest_ones(tmp_path: Path) -> None:
    """All 12 output channels are needed, and 8 dimensions of the input channels hold all energy."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.einsum(
        "orhw,ri->oihw", *(torch.randn(shape, generator=generator) for shape in ((12, 8, 3, 3), (8, 32)))
    )
    torch.save({"conv.weight": weight}, tmp_path / "conv.pt")
    options: dict[str, Any] = {"decomposition": "tucker", "round_to": 8, "dry_run": True}
    report = lrzip.compress(tmp_path / "conv.pt", budget="params=60%", **options)
    assert [decision.ranks for decision in report.plan.factorize] == [(12, 8)]


def test_rules_by_name_plan_the_same(path: Path) -> None:
    named: dict[str, dict[str, Any]] = {"energy:0.7": {"energy": 0.7}, "rank:4": {"rank": 4}, "vbmf": {"vbmf": True}}
    options: dict[str, dict[str, Any]] = {**named, "budget:params=50%": {"budget": "params=50%"}}
    for rule, same in options.items():
        assert (
            lrzip.compress(path, rank_rule=rule, dry_run=True).plan == lrzip.compress(path, dry_run=True, **same).plan
        )

from pathlib import Path
from typing import Any

import pytest
import torch

from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Layer, TensorSpec
from lrzip.search import families
from lrzip.search.families import FAMILIES, Family
from lrzip.search.sensitivities import LayerSensitivity, Sensitivities
from lrzip.search.sensitivity import sensitivities_of
from lrzip.search.strategies import STRATEGIES
from lrzip.search.trials import Trials
from lrzip.search.variants import Ranks
from lrzip.training.cache import Cache
from tests.support.searches import compress, trials_of
from tests.support.tasks import classes, learning_of

SIZES = {"fc1": (24, 12), "fc2": (32, 24), "fc3": (24, 32), "fc4": (4, 24)}


@pytest.fixture
def trials(folder: Path) -> Trials:
    return trials_of(folder)


def _first_ranks(trials: Trials, strategy: str) -> Ranks:
    limit = trials.dense.parameters // 2
    found = Family.of(strategy, trials).build(limit, trials.variants)
    assert trials.variants.parameters(found.ranks) <= limit
    assert found.ranks.keys() <= SIZES.keys()
    return found.ranks


def test_every_strategy_but_the_adaptive_one_is_a_family() -> None:
    assert FAMILIES.keys() == STRATEGIES.keys() - {"adaptive"}


def test_one_energy_explains_all_ranks_of_the_energy_family(trials: Trials) -> None:
    between = []
    for name, (rank,) in _first_ranks(trials, "energy").items():
        squares = torch.linalg.svdvals(trials.variants.model.state_dict()[f"{name}.weight"].double()).square()
        shares = torch.cat([torch.zeros(1), (squares.cumsum(0) / squares.sum()).float()])
        between.append((float(shares[rank - 1]), float(shares[rank])))
    assert len(between) > 1
    assert max(low for low, _ in between) <= min(high for _, high in between)


def _ratios(rows: int, columns: int, rank: int) -> tuple[float, float]:
    """Return the shares of a layer's parameters at which it has this rank, and the next larger one."""
    return rank * (rows + columns) / (rows * columns), (rank + 1) * (rows + columns) / (rows * columns)


def _shares(rows: int, columns: int, rank: int) -> tuple[float, float]:
    """Return the shares of the full rank at which a layer has this rank, and the next larger one."""
    return (0 if rank == 1 else rank / min(rows, columns)), (rank + 1) / min(rows, columns)


@pytest.mark.parametrize(("strategy", "interval"), [("ratio", _ratios), ("uniform", _shares)])
def test_one_share_explains_all_ranks(strategy: str, interval: Any, trials: Trials) -> None:
    ranks = _first_ranks(trials, strategy)
    assert len(ranks) > 1
    low, high = zip(*(interval(*SIZES[name], rank) for name, (rank,) in ranks.items()), strict=True)
    assert max(low) <= min(high)


def test_the_global_family_spends_one_budget_on_all_layers(trials: Trials) -> None:
    limit = trials.dense.parameters // 2
    found = Family.of("global", trials).build(limit, trials.variants)
    # The remainder is less than a rank of the largest layer.
    assert limit - (24 + 32) < trials.variants.parameters(found.ranks) <= limit


def _sensitivities(drops: dict[str, float]) -> Sensitivities:
    layers = [
        LayerSensitivity(
            Layer(name, name, LINEAR, TensorSpec(f"{name}.weight", SIZES[name], "float32", 4), None),
            *(0.8, (1,), 1, 1.0, 1.0, drop, None),
        )
        for name, drop in drops.items()
    ]
    return Sensitivities({"accuracy": 1.0}, "accuracy", 0.01, layers, 0, 1, 0)


@pytest.mark.parametrize("strategy", ["selective", "avoid-critical"])
def test_the_most_sensitive_half_of_four_layers_stays_dense(
    strategy: str, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = {"fc1": 0.1, "fc2": 0.4, "fc3": 0.3, "fc4": 0.2}
    monkeypatch.setattr(families, "sensitivities_of", lambda *_, **__: _sensitivities(drops))
    assert set(Family.of(strategy, trials).layers) == {"fc1", "fc4"}


@pytest.mark.parametrize(("strategy", "layers"), [("selective", {"fc1", "fc3"}), ("avoid-critical", {"fc1", "fc3"})])
def test_the_most_sensitive_of_three_layers_stays_dense(
    strategy: str, layers: set[str], trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = {"fc1": 0.1, "fc2": 0.4, "fc3": 0.3}
    monkeypatch.setattr(families, "sensitivities_of", lambda *_, **__: _sensitivities(drops))
    assert set(Family.of(strategy, trials).layers) == layers


@pytest.mark.parametrize("strategy", ["selective", "avoid-critical"])
def test_a_search_compresses_the_less_sensitive_layers(strategy: str, folder: Path) -> None:
    # The cross entropy, unlike the accuracy, differs between any two networks.
    metrics = ["tests.support.tasks:surprise:min"]
    trials = trials_of(folder, metrics=metrics)
    found = sensitivities_of(trials.bench, trials.variants, Cache(None), energies=(0.8,))
    drops = {item.layer.name: item.drop for item in found.layers}
    assert len(set(drops.values())) == len(SIZES)
    learning = learning_of(*classes(), metrics=metrics)
    ranks = compress(folder, strategy=strategy, max_drop=100, learning=learning).best.ranks
    assert len(ranks) == 2
    assert max(drops[name] for name in ranks) < min(drops[name] for name in drops.keys() - ranks.keys())

from pathlib import Path

import pytest

from lrzip.search.strategies import manner_of, search
from lrzip.training.settings import Settings
from tests.support.searches import trials_of


@pytest.mark.parametrize(
    ("drop", "manner"),
    [(0, "conservative"), (1, "conservative"), (1.01, "moderate"), (3, "moderate"), (5, "aggressive")],
)
def test_bounds_have_the_names_of_the_report(drop: float, manner: str) -> None:
    assert manner_of(drop) == manner
    assert manner_of(5.01) == "very aggressive"


@pytest.mark.parametrize(("strategy", "key"), [("adaptive", "layer"), ("ratio", "strategy")])
def test_a_search_returns_the_smallest_network_within_the_bound(strategy: str, key: str, folder: Path) -> None:
    trials = trials_of(folder)
    best = search(strategy, trials, Settings(epochs=1, batch_size=32, lr=1e-2))
    assert best.within
    assert best.parameters == min(trial.parameters for trial in trials.history if trial.within)
    assert any(key in trial.action for trial in trials.history)

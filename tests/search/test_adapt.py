from math import log
from pathlib import Path

import pytest

from lrzip.search.adapt import adapt, longer
from lrzip.training.settings import Settings
from tests.support.searches import compress, trials_of

SETTINGS = Settings(epochs=1, batch_size=32, lr=1e-2)
LOWEST = {"fc1": 0.95, "fc4": 0.9, "fc3": 0.3, "fc2": 0.3}
"""The lowest energy of each layer, in the order in which they are compressed."""


def test_the_first_and_the_last_layer_are_compressed_first_then_late_to_early(folder: Path) -> None:
    found = compress(folder, strategy="adaptive", max_drop=10)
    actions = [trial.action for trial in found.trials if "layer" in trial.action]
    layers = [action["layer"] for action in actions]
    order = list(dict.fromkeys(layers))
    assert len(order) > 1
    assert order == [name for name in LOWEST if name in order]
    # Energies are rounded to 6 digits.
    assert all(action["energy"] >= LOWEST[action["layer"]] - 1e-6 for action in actions)
    # Ranks are found by bisection, in no more rounds than halvings of the ranks there are, 24 at most, and one.
    assert all(layers.count(name) <= log(24, 2) + 1 for name in order)


def test_the_network_is_tuned_for_longer_after_each_layer(folder: Path) -> None:
    trials = trials_of(folder, bound=0.1)
    best = adapt(trials, SETTINGS)
    assert best.within
    assert best is not trials.dense
    tuned = [trial for trial in trials.history if trial.action == {"tune": "whole"}]
    assert tuned
    assert best.key == tuned[-1].key


def test_the_smallest_rank_within_the_bound_is_taken_for_each_layer(folder: Path) -> None:
    found = compress(folder, strategy="adaptive", max_drop=10)
    for name in found.best.ranks:
        tried = [trial for trial in found.trials if trial.action.get("layer") == name]
        taken = found.best.ranks[name][0]
        assert taken == min(trial.action["rank"] for trial in tried if trial.within)
        assert all(trial.within == (trial.action["rank"] >= taken) for trial in tried)
    assert found.best.ranks


@pytest.mark.parametrize(("settings", "steps"), [(Settings(steps=9), 15), (Settings(epochs=3), 5)])
def test_five_thirds_of_a_brief_fine_tuning(settings: Settings, steps: int) -> None:
    found = longer(settings)
    assert (found.steps if settings.steps else found.epochs) == steps

from itertools import pairwise
from pathlib import Path

from lrzip.search.descend import MARGIN, descend
from lrzip.search.families import Family
from lrzip.search.trial import NOT_SMALLER
from lrzip.training.settings import Settings
from tests.support.searches import trials_of

SETTINGS = Settings(epochs=1, batch_size=32, lr=1e-2)


def test_parameters_are_halved_from_one_network_within_the_bound_to_the_next(folder: Path) -> None:
    trials = trials_of(folder, bound=1.0)  # everything is within
    best = descend(trials, Family.of("uniform", trials), SETTINGS)
    least = trials.variants.least_parameters(["fc1", "fc2", "fc3", "fc4"])
    limits = [trial.action["parameters"] for trial in trials.history]
    assert limits[0] == round(trials.dense.parameters / 2)
    assert limits[-1] == least == best.parameters
    assert all(trial.parameters <= limit for trial, limit in zip(trials.history, limits, strict=True))


def test_the_step_gets_smaller_where_the_bound_is_missed(folder: Path) -> None:
    trials = trials_of(folder, bound=0.02)
    best = descend(trials, Family.of("uniform", trials), SETTINGS)
    assert best.within
    missed = [trial for trial in trials.history if not trial.within]
    assert missed
    # The first step that misses the bound halves the parameters; the last ones save little.
    smallest = min(trial.action["parameters"] for trial in missed if "parameters" in trial.action)
    assert smallest < best.parameters


def test_a_network_that_misses_the_bound_by_little_is_tuned_further(folder: Path) -> None:
    trials = trials_of(folder, bound=0.1)
    descend(trials, Family.of("global", trials), SETTINGS)
    followed = {False: 0, True: 0}
    for trial, following in pairwise(trials.history):
        if "tune" in trial.action:
            continue
        improved = trial.scores["accuracy"] > trial.before["accuracy"]
        expected = not trial.within and improved and trials.shortfall(trial) <= trials.bound + MARGIN
        assert (following.action.get("tune") == "on") == expected
        followed[expected] += 1
    assert all(followed.values())
    rounds = [trial for trial in trials.history if "tune" in trial.action]
    assert {trial.action["round"] for trial in rounds} == {2, 3}
    assert all(trial.ranks and trial.stopped != NOT_SMALLER for trial in rounds)

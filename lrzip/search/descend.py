"""Search along a family: smaller and smaller variants, as far as the bound allows."""

from dataclasses import replace
from functools import partial
from math import exp, log

from lrzip.search.families import Family
from lrzip.search.trial import Trial
from lrzip.search.trials import Trials
from lrzip.training.settings import Settings

MARGIN = 0.005
"""Distance from the bound, in the metric's unit, at which a search stops (Kant 2025, section 15.2.2)."""

# The number of parameters is halved at first; the search ends where a step would save less than a twentieth.
_FIRST_STEP, _LAST_STEP = log(2), log(1.05)
_MORE_ROUNDS = 2


def descend(trials: Trials, family: Family, settings: Settings) -> Trial:
    """Return the smallest network of a family within the bound that a descent finds; the dense one if none is smaller.

    Each network is built from the tuned one before it. The step starts as a factor of 2 in the number of
    parameters; its logarithm is halved after each rejected network. A network that is not within the bound is tuned
    further before it is rejected, as long as each round recovers half of the shortfall.

    Args:
        trials: Runs trials.
        family: The variants to search.
        settings: Settings of one brief fine-tuning.

    Raises:
        Interrupted: The user interrupted the search.
    """
    current, step = trials.dense, _FIRST_STEP
    least = trials.variants.least_parameters(family.layers)
    while step >= _LAST_STEP and current.parameters > least:
        parameters = max(round(current.parameters * exp(-step)), least)
        action = {"strategy": family.name, "parameters": parameters}
        trial = trials.attempt(current, action, partial(family.build, parameters), settings)
        trial = _tuned_further(trials, trial, settings)
        if trial.within:
            current = trial
        else:
            step /= 2
        trials.keep(current)
    return current


def _tuned_further(trials: Trials, trial: Trial, settings: Settings) -> Trial:
    """Tune a network further until it is within the bound, is too far from it, or approaches it too slowly."""
    shortfall = trials.shortfall(trial)
    for round_ in range(2, 2 + _MORE_ROUNDS):
        improved = trials.bench.gain(trial.scores) > trials.bench.gain(trial.before)
        if trial.within or not improved or shortfall > trials.bound + MARGIN:
            break
        other = replace(settings, seed=settings.seed + round_)
        trial = trials.attempt(trial, {"tune": "on", "round": round_}, None, other)
        if trials.shortfall(trial) > shortfall / 2:
            break
        shortfall = trials.shortfall(trial)
    return trial

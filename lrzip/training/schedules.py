"""Learning-rate schedules, as functions of the step and of the scores so far, so that no other state is saved."""

from collections.abc import Sequence
from math import cos, pi

SCHEDULES = ("cosine", "plateau", "constant")
_PLATEAU_EPOCHS = 3
_PLATEAU_FACTOR = 0.1


def rate_factor(schedule: str, step: int, steps: int, warmup: int, gains: Sequence[float]) -> float:
    """Return the factor of the learning rate in a step.

    Args:
        schedule: `cosine` falls towards 0 at the end; `plateau` is divided by ten for every three epochs since the
            best score, so it returns to 1 with a better one; `constant` stays at 1.
        step: Number of the step, from 0.
        steps: Number of steps of the whole training.
        warmup: Number of steps over which the rate rises linearly.
        gains: Scores so far, the first before training; higher is better.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        return 0.5 * (1 + cos(pi * (step - warmup) / max(steps - warmup, 1)))
    return _PLATEAU_FACTOR ** (epochs_since_best(gains) // _PLATEAU_EPOCHS) if schedule == "plateau" else 1.0


def epochs_since_best(gains: Sequence[float]) -> int:
    """Return the number of epochs since the first one with the best score."""
    return len(gains) - 1 - gains.index(max(gains)) if gains else 0

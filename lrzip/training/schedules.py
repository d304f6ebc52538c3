"""Learning rates, as functions of the step and of the scores so far, so that nothing but those needs to be kept."""

from collections.abc import Sequence
from math import cos, pi

SCHEDULES = ("cosine", "plateau", "constant")
_PLATEAU_EPOCHS = 3
_PLATEAU_FACTOR = 0.1


def factor(schedule: str, step: int, steps: int, warmup: int, gains: Sequence[float]) -> float:
    """Return what the learning rate of a step is multiplied by.

    Args:
        schedule: `cosine` falls to 0 at the last step, `plateau` to a tenth after every three epochs without a better
            score, `constant` stays.
        step: From 0.
        steps: Of the whole training.
        warmup: Steps over which the rate rises linearly.
        gains: Scores so far, the first before training; more is better.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        return 0.5 * (1 + cos(pi * (step - warmup) / max(steps - warmup, 1)))
    return _PLATEAU_FACTOR ** (idle(gains) // _PLATEAU_EPOCHS) if schedule == "plateau" else 1.0


def idle(gains: Sequence[float]) -> int:
    """Return the number of epochs since the best score."""
    return len(gains) - 1 - gains.index(max(gains)) if gains else 0

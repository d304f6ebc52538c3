"""The state of a training after a step, after an epoch and at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrzip.core.numbers import finite
from lrzip.training.settings import Settings


@dataclass(frozen=True)
class Epoch:
    """Loss and metrics at the end of an epoch; epoch 0 is before training.

    Attributes:
        number: Number of the epoch.
        step: Number of steps so far.
        rate: Learning rate of the last step.
        loss: Mean training loss of the epoch; None before training.
        scores: Metrics on the validation set; empty without one.
        seconds: Time since the start of the training.
    """

    number: int
    step: int
    rate: float
    loss: float | None
    scores: Mapping[str, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the epoch as a line of a log."""
        return {
            "epoch": self.number,
            "step": self.step,
            "lr": self.rate,
            "loss": self.loss,
            "metrics": {name: finite(value) for name, value in self.scores.items()},
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class StepState:
    """The state of a training after a step, for display.

    Attributes:
        epoch: Number of the epoch, from 1.
        step: Number of steps so far.
        steps: Number of steps of the whole training.
        loss: Loss of the step.
        last: The last evaluation; None without one.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    last: Epoch | None


StepCallback = Callable[[StepState], None]
Log = Callable[[Epoch], None]


@dataclass(frozen=True)
class Outcome:
    """The result of a training.

    Attributes:
        state: The state_dict, on the CPU, with the best validation metric; without a validation set, the last one.
        epochs: One entry for each evaluation, the first before training.
        best: The epoch that `state` belongs to.
        steps: Number of steps taken.
        seconds: Wall time; the sum over all runs of a resumed training.
        stopped: `finished`, `patience`, `interrupted` or `not finite`.
        main: Whether this process writes files.
        settings: The settings, with `amp="auto"` resolved.
    """

    state: Mapping[str, Tensor]
    epochs: Sequence[Epoch]
    best: Epoch
    steps: int
    seconds: float
    stopped: str
    main: bool
    settings: Settings

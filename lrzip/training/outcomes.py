"""What is known of a training: on its way, after each epoch, and at its end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor

from lrzip.training.settings import Settings


@dataclass(frozen=True)
class Epoch:
    """What is known at the end of an epoch; epoch 0 is before training.

    Attributes:
        number: From 0.
        step: Steps so far.
        rate: Learning rate of the last step.
        loss: Mean over the epoch's steps; None before training.
        scores: Metrics of the validation set; empty without one.
        seconds: Since the beginning.
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
            "metrics": {name: value if isfinite(value) else None for name, value in self.scores.items()},
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class StepState:
    """Where a training is, for people: after each step."""

    epoch: int
    step: int
    steps: int
    loss: float
    last: Epoch | None


StepCallback = Callable[[StepState], None]
Log = Callable[[Epoch], None]


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        state: The best state_dict by the validation set, or the last one without it, on the CPU.
        epochs: One for each evaluation, the first before training.
        best: The one that `state` is of.
        steps: That were done.
        seconds: In all, over all runs if it was resumed.
        stopped: `finished`, `patience`, `interrupted` or `not finite`.
        at: Number of the step at which it stopped.
        main: Whether this is the process that writes.
        settings: How it was trained, with the precision that `auto` stood for.
    """

    state: Mapping[str, Tensor]
    epochs: Sequence[Epoch]
    best: Epoch
    steps: int
    seconds: float
    stopped: str
    at: int
    main: bool
    settings: Settings

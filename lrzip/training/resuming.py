"""The file from which an interrupted training resumes as if it had never stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lrzip.core.errors import one_line
from lrzip.formats.files.atomic import atomic_file
from lrzip.training.outcomes import Epoch
from lrzip.training.resume_file import VERSION, check_state, open_state
from lrzip.training.weights import Weights


@dataclass
class TrainingProgress:
    """The progress of a training, apart from its weights and its optimizer.

    Attributes:
        step: Number of steps taken.
        epochs: Evaluations so far.
        losses: Losses of the steps of the current epoch.
        best: The best state_dict so far, by the validation set.
        seconds: Wall time of earlier runs.
    """

    step: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class ResumeFile:
    """The state of a training in a file.

    Attributes:
        path: The file; None to save nothing.
        identity: Everything that determines the training, by name; a file with other values is refused.
        metrics: Names of the metrics of each evaluation.
    """

    path: Path | None
    identity: Mapping[str, Any]
    metrics: Sequence[str] = ()

    def restore(self, weights: Weights, accelerator: Accelerator) -> TrainingProgress:
        """Load weights and optimizer and return the progress; without a file, it is that of a new training.

        Raises:
            LrzipError: The file is damaged, is not a training state, or belongs to another training.
        """
        found = open_state(self.path, self.identity) if self.path else None
        if found is None:
            return TrainingProgress()
        scaler = accelerator.scaler
        state = check_state(found, weights, self.metrics, scaler.state_dict() if scaler is not None else {})
        try:
            weights.load(state.model, state.optimizer)
            if scaler is not None and state.scaler:
                scaler.load_state_dict(dict(state.scaler))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise found.place.fault(f"does not fit this training: {one_line(error)}") from error
        return TrainingProgress(state.step, list(state.history), list(state.losses), state.best, state.seconds)

    def save(self, progress: TrainingProgress, weights: Weights, accelerator: Accelerator, *, seconds: float) -> None:
        """Write the state, in the first process only; all processes must call this together."""
        if not self.path:
            return
        model, optimizer = weights.state(), weights.optimizer_state()
        if not accelerator.is_main_process:
            return
        scaler = accelerator.scaler
        state = {
            "settings": dict(self.identity),
            "model": model,
            "optimizer": optimizer,
            "scaler": scaler.state_dict() if scaler is not None else {},
            "best": dict(progress.best),
            "step": progress.step,
            "history": [{**vars(epoch), "scores": dict(epoch.scores)} for epoch in progress.epochs],
            "loss": list(progress.losses),
            "seconds": seconds,
        }
        save_state(self.path, state)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state, replacing the file atomically."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        torch.save({"lrzip_training": VERSION, **state}, file)

"""The file from which an interrupted training resumes as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lrzip.core.errors import LrzipError
from lrzip.formats.files.atomic import atomic_file
from lrzip.training.outcomes import Epoch
from lrzip.training.weights import Weights

_VERSION = 1
_KEYS = {"lrzip_training", "settings", "model", "optimizer", "scaler", "best", "step", "history", "loss", "seconds"}


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
    """

    path: Path | None
    identity: Mapping[str, Any]

    def restore(self, weights: Weights, accelerator: Accelerator) -> TrainingProgress:
        """Load weights and optimizer and return the progress; without a file, it is that of a new training.

        Raises:
            LrzipError: The file is damaged, is not a training state, or belongs to another training.
        """
        state = load_state(self.path, self.identity) if self.path else None
        if state is None:
            return TrainingProgress()
        weights.load(state["model"], state["optimizer"])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        epochs = [Epoch(**epoch) for epoch in state["history"]]
        return TrainingProgress(state["step"], epochs, state["loss"], state["best"], state["seconds"])

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
        torch.save({"lrzip_training": _VERSION, **state}, file)


def load_state(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state in a file, or None if the file does not exist.

    Args:
        path: The file.
        identity: Everything that determines the training, by name; it must equal what the file records.

    Raises:
        LrzipError: The file is damaged, is not a training state, or belongs to another training.
    """
    if not path.exists():
        return None
    if path.is_dir():
        raise LrzipError(f"`resume={path}` is a folder. Give the name of a file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise LrzipError(
            f"`{path}` is damaged or not the state of a training, so it cannot be resumed. Remove it to start anew."
        ) from error
    if not isinstance(state, dict) or state.keys() != _KEYS or state["lrzip_training"] != _VERSION:
        raise LrzipError(
            f"`{path}` is not the state of a training by this version of lrzip. Choose another file with `resume=FILE`."
        )
    for name in dict.fromkeys([*identity, *state["settings"]]):
        then, now = state["settings"].get(name), identity.get(name)
        if then != now:
            raise LrzipError(
                f"`{path}` belongs to a training with {name} {then}, and now it is {now}. Remove it to start anew."
            )
    return state

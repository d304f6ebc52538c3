"""The training loop: epochs, learning rates, evaluation and early stopping."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from lrzip.core.errors import UsageError
from lrzip.core.memory import keep_freed_blocks
from lrzip.training.batches import Batches, Share, prepared
from lrzip.training.batchnorm import synchronize_batchnorm
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Batch
from lrzip.training.forward import use_channels_last
from lrzip.training.freezing import is_frozen_batchnorm
from lrzip.training.interruption import Interruption, interruption
from lrzip.training.losses import TrainingLoss
from lrzip.training.metrics import Scorer
from lrzip.training.outcomes import Epoch, Log, Outcome, StepCallback, StepState
from lrzip.training.processes import make_accelerator, precision, reproducible
from lrzip.training.resuming import ResumeFile
from lrzip.training.schedules import epochs_since_best, rate_factor
from lrzip.training.settings import Settings
from lrzip.training.steps import Stepper
from lrzip.training.weights import place

_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Execution:
    """The device, the resume file and the callbacks of a training.

    Attributes:
        device: Device to compute on.
        workers: Number of processes that prepare batches; with 0, the training process prepares them.
        resume: File that the state is saved in. If it exists, training resumes from it.
        identity: Values by name that must match those in the file to resume, in addition to the settings.
        watch: Called after each step.
        log: Called after each evaluation.
    """

    device: str = "cpu"
    workers: int = 0
    resume: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    watch: StepCallback | None = None
    log: Log | None = None


def train(
    model: nn.Module,
    data: Data,
    objective: TrainingLoss,
    scorer: Scorer,
    settings: Settings,
    execution: Execution | None = None,
) -> Outcome:
    """Train a network and return its best state by the validation metric.

    The order of the samples, their augmentation and dropout are functions of the seed and the number of the step, so a
    training that is resumed, or distributed over processes, computes the same as an uninterrupted one on one process.

    Args:
        model: The network, trained in place; at the end it is in the last state, not the best.
        data: Training set, and the validation set that selects the state; without one the last state is returned.
        objective: The loss.
        scorer: The metrics.
        settings: Optimizer, schedule and other hyperparameters.
        execution: Device, file to resume from and callbacks.

    Raises:
        LrzipError: A batch does not fit the network or the labels, or the resume file belongs to another training.
    """
    execution = execution or Execution()
    keep_freed_blocks()
    networks = [network for network in (model, objective.teacher) if network is not None]
    converted = [use_channels_last(network, data.train) for network in networks]
    settings = replace(settings, amp=precision(settings.amp, execution.device, images=all(converted)))
    accelerator = make_accelerator(execution.device, settings.amp)
    with reproducible(accelerator.device), interruption() as interrupted, objective.attached(model):
        plan = _plan(data, settings, accelerator)
        if plan.share.count > 1 and not settings.freeze_batchnorm:
            model = synchronize_batchnorm(model, accelerator.device)
        weights = place(model, settings, accelerator)
        if objective.teacher is not None:
            objective.teacher.to(accelerator.device).eval().requires_grad_(False)
        stepper = Stepper(accelerator, model, weights, objective, settings, all(converted))
        return _Run(stepper, data, scorer, execution, plan, interrupted).outcome()


@dataclass(frozen=True)
class _Plan:
    """Sizes of a training: samples per batch over all processes, steps per epoch, and steps in total."""

    size: int
    per_epoch: int
    steps: int
    share: Share


def _plan(data: Data, settings: Settings, accelerator: Accelerator) -> _Plan:
    share = Share(accelerator.process_index, accelerator.num_processes)
    wanted = settings.batch(len(data.train))
    size = wanted // share.count * share.count
    if not size or (settings.batch_size or 0) % share.count:
        raise UsageError(f"`batch_size={wanted}` cannot be shared by {share.count} processes.")
    per_epoch = len(data.train) // size
    return _Plan(size, per_epoch, settings.steps or settings.epochs * per_epoch, share)


class _Run:
    """A training in progress."""

    def __init__(
        self,
        stepper: Stepper,
        data: Data,
        scorer: Scorer,
        execution: Execution,
        plan: _Plan,
        interrupted: Interruption,
    ) -> None:
        self._stepper, self._data, self._scorer, self._execution = stepper, data, scorer, execution
        self._plan, self._interrupted = plan, interrupted
        self._accelerator, self._settings, self._weights = stepper.accelerator, stepper.settings, stepper.weights
        self._start = self._saved = perf_counter()
        identity = {**vars(self._settings), **execution.identity}
        self._file = ResumeFile(execution.resume, identity, list(scorer.metrics))
        self._progress = self._file.restore(self._weights, self._accelerator)
        self._stopped = "finished"

    def outcome(self) -> Outcome:
        """Train to the end and return the result."""
        progress, plan = self._progress, self._plan
        if not progress.epochs:
            self._end_epoch(0)
        while progress.step < plan.steps and self._stopped == "finished":
            if self._is_out_of_patience():
                self._stopped = "patience"
            else:
                self._run_epoch(progress.step // plan.per_epoch + 1)
        scored = [epoch for epoch in progress.epochs if epoch.scores]
        best = max(scored, key=lambda epoch: self._scorer.gain(epoch.scores)) if scored else progress.epochs[-1]
        state = progress.best if scored else self._weights.state()
        self._accelerator.wait_for_everyone()
        self._weights.release()
        return Outcome(
            state=state,
            epochs=progress.epochs,
            best=best,
            steps=progress.step,
            seconds=self._seconds(),
            stopped=self._stopped,
            main=self._accelerator.is_main_process,
            settings=self._settings,
        )

    def _run_epoch(self, number: int) -> None:
        self._set_mode()
        for batch in prepared(self._loader(number)):
            loss = self._stepper.take(batch, self._progress.step, self._rate())
            if loss is None:
                self._stopped = "not finite"
                return
            self._progress.step += 1
            self._progress.losses.append(loss)
            self._report(number, loss)
            requested, due = self._any(self._interrupted.requested, perf_counter() - self._saved > _SAVE_SECONDS)
            if requested:
                self._stopped = "interrupted"
                break
            if due and self._is_within_epoch():
                self._save()
        if self._is_within_epoch():
            # The state may be the best so far, so it is evaluated. An uninterrupted training would not evaluate it
            # here, so it is saved first; a second Ctrl-C skips the evaluation.
            self._save()
            self._end_epoch(number)
        else:
            self._end_epoch(number)
            self._save()

    def _loader(self, number: int) -> DataLoader[Batch]:
        """Return the batches of an epoch that are still to be trained on."""
        plan, step = self._plan, self._progress.step
        batches = Batches(self._data.train, plan.size, seed=self._settings.seed, epoch=number, share=plan.share)
        start = step - (number - 1) * plan.per_epoch
        end = min(plan.per_epoch, start + plan.steps - step)
        return DataLoader(
            batches,
            batch_size=None,
            sampler=range(start, end),
            num_workers=self._execution.workers,
            collate_fn=_identity,
        )

    def _set_mode(self) -> None:
        self._weights.network.train()
        for module in self._stepper.model.modules():
            if is_frozen_batchnorm(module) or (self._settings.freeze_batchnorm and isinstance(module, _BatchNorm)):
                module.eval()

    def _report(self, epoch: int, loss: float) -> None:
        if self._execution.watch:
            progress = self._progress
            self._execution.watch(StepState(epoch, progress.step, self._plan.steps, loss, progress.epochs[-1]))

    def _is_within_epoch(self) -> bool:
        """Return whether the last step was neither the last of its epoch nor the last of all."""
        step = self._progress.step
        return step % self._plan.per_epoch > 0 and step < self._plan.steps

    def _is_out_of_patience(self) -> bool:
        patience = self._settings.patience
        return patience is not None and epochs_since_best(self._gains()) >= patience

    def _rate(self) -> float:
        settings, steps = self._settings, self._plan.steps
        warmup = round(settings.warmup * steps)
        return settings.rate * rate_factor(settings.schedule, self._progress.step, steps, warmup, self._gains())

    def _end_epoch(self, number: int) -> None:
        progress = self._progress
        scores = self._scores()
        loss = sum(progress.losses) / len(progress.losses) if progress.losses else None
        rate = self._weights.optimizer.param_groups[0]["lr"] if number else 0.0
        before = self._gains()
        epoch = Epoch(number, progress.step, rate, loss, scores, self._seconds())
        progress.epochs.append(epoch)
        progress.losses = []
        if scores and (not before or self._scorer.gain(scores) > max(before)):
            progress.best = self._weights.state()
        if self._execution.log and self._accelerator.is_main_process:
            self._execution.log(epoch)

    def _scores(self) -> dict[str, float]:
        if self._data.val is None:
            return {}
        with self._accelerator.autocast():
            return self._scorer(
                self._stepper.model,
                self._data.val,
                target=self._stepper.objective.target,
                device=self._accelerator.device,
                batch_size=2 * self._plan.size,
                share=self._plan.share,
            )

    def _gains(self) -> list[float]:
        return [self._scorer.gain(epoch.scores) for epoch in self._progress.epochs if epoch.scores]

    def _any(self, *flags: bool) -> Sequence[bool]:
        """Return each flag as true if it is true in any process."""
        if self._plan.share.count == 1:
            return flags
        votes = torch.tensor([float(flag) for flag in flags], device=self._accelerator.device)
        return [bool(count > 0) for count in self._accelerator.reduce(votes, reduction="sum")]

    def _save(self) -> None:
        self._saved = perf_counter()
        self._file.save(self._progress, self._weights, self._accelerator, seconds=self._seconds())

    def _seconds(self) -> float:
        return self._progress.seconds + perf_counter() - self._start


def _identity(batch: Any) -> Any:
    return batch

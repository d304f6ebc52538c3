"""The training loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from lrzip.core.errors import LrzipError, UsageError, typed_line
from lrzip.core.memory import keep_freed_blocks
from lrzip.networks.inputs import described
from lrzip.training.batches import Batches
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Batch, seed_of
from lrzip.training.forward import images_last
from lrzip.training.interruption import Interruption, interruption
from lrzip.training.losses import TrainingLoss
from lrzip.training.metrics import Scorer
from lrzip.training.outcomes import Epoch, Log, Outcome, StepCallback, StepState
from lrzip.training.processes import make_accelerator, precision, reproducible, synchronize_batchnorm
from lrzip.training.resuming import load_state, save_state
from lrzip.training.schedules import factor, idle
from lrzip.training.settings import Settings
from lrzip.training.weights import place

_SAVE_SECONDS = 60.0


def train(
    model: nn.Module,
    data: Data,
    objective: TrainingLoss,
    scorer: Scorer,
    settings: Settings,
    *,
    device: str = "cpu",
    workers: int = 0,
    resume: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    watch: StepCallback | None = None,
    log: Log | None = None,
) -> Outcome:
    """Train a network and return its best state by the validation set.

    The order of the examples, their augmentation and dropout follow from the seed and the number of the step, so that a
    training that is resumed, or shared among processes, is the same as one that was not.

    Args:
        model: Trained in place; at the end it is in the last state, not the best.
        data: What to train on and what to select by; without a validation set the last state is returned.
        objective: The loss.
        scorer: The metrics.
        settings: How to train.
        device: Where to compute.
        workers: Processes that prepare batches; 0 prepares them in between.
        resume: File that the state is kept in. If it exists, training goes on from there.
        identity: What else must be the same to go on.
        watch: Called after each step.
        log: Called for each evaluation.

    Raises:
        LrzipError: A batch does not fit the network or the labels, or `resume` is of another training.
    """
    keep_freed_blocks()
    networks = [network for network in (model, objective.teacher) if network is not None]
    images = [images_last(network, data.train) for network in networks]
    settings = replace(settings, amp=precision(settings.amp, device, images=all(images)))
    accelerator = make_accelerator(device, settings.amp)
    with reproducible(accelerator.device), interruption() as asked:
        run = _Run(
            accelerator, model, data, objective, scorer, settings, all(images), asked, workers, resume, watch, log
        )
        with objective.attached(model):
            return run.done({**vars(settings), **(identity or {})})


@dataclass
class _Run:
    """A training on its way."""

    accelerator: Accelerator
    model: nn.Module
    data: Data
    objective: TrainingLoss
    scorer: Scorer
    settings: Settings
    images_last: bool
    asked: Interruption
    workers: int
    resume: Path | None
    watch: StepCallback | None
    log: Log | None
    step: int = 0
    seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the epoch's steps so far
    best: Mapping[str, Tensor] = field(default_factory=dict)
    stopped: str = "finished"

    def done(self, begun_with: Mapping[str, Any]) -> Outcome:
        """Train to the end, and return what came of it."""
        self._start = self._saved = perf_counter()
        self._begun_with = begun_with
        self._set_up()
        if not self.history:
            self._end_epoch(0)
        while self.step < self.steps and self.stopped == "finished":
            if self._out_of_patience():
                self.stopped = "patience"
            else:
                self._epoch(self.step // self.per_epoch + 1)
        scored = [epoch for epoch in self.history if epoch.scores]
        best = max(scored, key=lambda epoch: self.scorer.gain(epoch.scores)) if scored else self.history[-1]
        state = self.best if scored else self.weights.state()
        self.accelerator.wait_for_everyone()
        self.weights.release()
        main = self.accelerator.is_main_process
        return Outcome(
            state, self.history, best, self.step, self._elapsed(), self.stopped, self.step, main, self.settings
        )

    def _set_up(self) -> None:
        accelerator, settings = self.accelerator, self.settings
        self.part = accelerator.process_index, accelerator.num_processes
        self.size = settings.batch(len(self.data.train)) // self.part[1] * self.part[1]
        if not self.size or (settings.batch_size or 0) % self.part[1]:
            wanted = settings.batch(len(self.data.train))
            raise UsageError(f"`--batch-size {wanted}` cannot be shared by {self.part[1]} processes.")
        self.per_epoch = len(self.data.train) // self.size
        self.steps = settings.steps or settings.epochs * self.per_epoch
        if self.part[1] > 1 and not settings.freeze_batchnorm:
            self.model = synchronize_batchnorm(self.model, accelerator.device)
        self.weights = place(self.model, settings, accelerator)
        self.network, self.optimizer = self.weights.network, self.weights.optimizer
        if self.objective.teacher is not None:
            self.objective.teacher.to(accelerator.device).eval().requires_grad_(False)
        kept = load_state(self.resume, self._begun_with) if self.resume else None
        if kept:
            self._continue(kept)

    def _continue(self, kept: Mapping[str, Any]) -> None:
        self.weights.load(kept["model"], kept["optimizer"])
        if self.accelerator.scaler is not None and kept["scaler"]:
            self.accelerator.scaler.load_state_dict(kept["scaler"])
        self.best, self.step, self.losses = kept["best"], kept["step"], kept["loss"]
        self.history = [Epoch(**epoch) for epoch in kept["history"]]
        self.seconds = kept["seconds"]

    def _epoch(self, number: int) -> None:
        batches = Batches(self.data.train, self.size, self.settings.seed, number, self.part)
        begin = self.step - (number - 1) * self.per_epoch
        end = min(self.per_epoch, begin + self.steps - self.step)
        loader = DataLoader(
            batches, batch_size=None, sampler=range(begin, end), num_workers=self.workers, collate_fn=_as_it_is
        )
        self._mode()
        for batch in loader:
            loss = self._step(batch)
            if self.stopped != "finished":
                return
            self.losses.append(loss)
            if self.watch:
                self.watch(StepState(number, self.step, self.steps, loss, self.history[-1]))
            interrupted, due = self._agreed(self.asked.requested, perf_counter() - self._saved > _SAVE_SECONDS)
            if interrupted:
                self.stopped = "interrupted"
                break
            if due and self._within():
                self._save()
        if self._within():
            self._save()  # as it is without the evaluation that follows, which a whole training does not do
            self._end_epoch(number)  # this state may be the best so far; a second Ctrl-C goes without
        else:
            self._end_epoch(number)
            self._save()

    def _within(self) -> bool:
        """Tell whether the last step was neither the last of its epoch nor of all."""
        return self.step % self.per_epoch > 0 and self.step < self.steps

    def _out_of_patience(self) -> bool:
        return self.settings.patience is not None and idle(self._gains()) >= self.settings.patience

    def _mode(self) -> None:
        self.network.train()
        for module in self.model.modules() if self.settings.freeze_batchnorm else ():
            if isinstance(module, _BatchNorm):
                module.eval()

    def _step(self, batch: Batch) -> float:
        """Do a step, unless the loss or its gradient is not finite, and return the loss over all processes."""
        accelerator, settings = self.accelerator, self.settings
        torch.manual_seed(seed_of("step", settings.seed, self.step, self.part[0]))
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs, target = _moved(batch, accelerator.device)
        if self.images_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        try:
            with accelerator.autocast():
                loss = self.objective(self.network, inputs, target)
            _check_loss(loss)
        except LrzipError:
            raise
        except torch.OutOfMemoryError as error:
            raise LrzipError(f"The device is out of memory in step {self.step + 1}. Lower `--batch-size`.") from error
        except Exception as error:
            raise LrzipError(f"Step {self.step + 1}, on inputs {described(inputs)}: {typed_line(error)}.") from error
        value = float(accelerator.reduce(loss.detach().float(), reduction="mean"))
        if not isfinite(value):
            self.stopped = "not finite"
            return value
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), settings.clip or float("inf"))
        if accelerator.scaler is None and not isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm):
            self.stopped = "not finite"
            return value
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return value

    def _rate(self) -> float:
        settings = self.settings
        warmup = round(settings.warmup * self.steps)
        return settings.rate * factor(settings.schedule, self.step, self.steps, warmup, self._gains())

    def _end_epoch(self, number: int) -> None:
        scores = self._scores()
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        rate = self.optimizer.param_groups[0]["lr"] if number else 0.0
        before = self._gains()
        epoch = Epoch(number, self.step, rate, loss, scores, self._elapsed())
        self.history.append(epoch)
        self.losses = []
        if scores and (not before or self.scorer.gain(scores) > max(before)):
            self.best = self.weights.state()
        if self.log and self.accelerator.is_main_process:
            self.log(epoch)

    def _scores(self) -> dict[str, float]:
        if self.data.val is None:
            return {}
        with self.accelerator.autocast():
            return self.scorer(
                self.model,
                self.data.val,
                target=self.objective.target,
                device=self.accelerator.device,
                batch_size=2 * self.size,
                part=self.part,
            )

    def _gains(self) -> list[float]:
        return [self.scorer.gain(epoch.scores) for epoch in self.history if epoch.scores]

    def _agreed(self, *wishes: bool) -> Sequence[bool]:
        """Return which wishes any of the processes has."""
        if self.part[1] == 1:
            return wishes
        votes = torch.tensor([float(wish) for wish in wishes], device=self.accelerator.device)
        return [bool(count > 0) for count in self.accelerator.reduce(votes, reduction="sum")]

    def _save(self) -> None:
        self._saved = perf_counter()
        if not self.resume:
            return
        model, optimizer = self.weights.state(), self.weights.optimizer_state()
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        save_state(
            self.resume,
            {
                "settings": dict(self._begun_with),
                "model": model,
                "optimizer": optimizer,
                "scaler": scaler.state_dict() if scaler is not None else {},
                "best": dict(self.best),
                "step": self.step,
                "history": [{**vars(epoch), "scores": dict(epoch.scores)} for epoch in self.history],
                "loss": list(self.losses),
                "seconds": self._elapsed(),
            },
        )

    def _elapsed(self) -> float:
        return self.seconds + perf_counter() - self._start


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        what = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise LrzipError(
            f"The loss, {what}, is no scalar tensor that depends on weights which can be trained. Check `--loss`, and "
            "`requires_grad` in the network."
        )


def _as_it_is(batch: Any) -> Any:
    return batch


def _moved(batch: Batch, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)

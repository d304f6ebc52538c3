"""Losses: of outputs against labels, and against a teacher."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.networks.build import locate
from lrzip.training.forward import apply
from lrzip.training.tasks import CLASSIFICATION, Task, class_first

LossFunction = Callable[[Tensor, Tensor], Tensor]
LOSSES = ("auto", "cross_entropy", "mse", "kl")


def make_loss(spec: str, task: Task, *, label_smoothing: float = 0.0) -> LossFunction:
    """Return a function of outputs and labels.

    Args:
        spec: `auto` is cross entropy for classes and the mean squared error for numbers; `kl` takes labels that are
            distributions (n, classes); `pkg.mod:fn` is a function of outputs and labels that returns a scalar.
        task: What is learned.
        label_smoothing: Share of each label that goes to all classes alike.

    Raises:
        UsageError: There is no such loss, or it does not fit the task.
    """
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"`--label-smoothing` takes a share from 0 to below 1, got {label_smoothing:g}.")
    if ":" in spec:
        function: LossFunction = locate(spec, "--loss")
        return function
    if spec not in LOSSES:
        raise UsageError(f"`--loss` takes {', '.join(LOSSES)} or `pkg.mod:fn`, got `{spec}`.")
    classes = task.kind == CLASSIFICATION
    name = spec if spec != "auto" else "cross_entropy" if classes else "mse"
    if task.labelled and (name == "cross_entropy") != classes:
        raise UsageError(f"`--loss {name}` does not fit the data, which is {task.kind}.")
    if name == "cross_entropy":
        return lambda output, target: F.cross_entropy(
            class_first(output, target), target, label_smoothing=label_smoothing
        )
    if name == "kl":
        return lambda output, target: F.kl_div(F.log_softmax(output, 1), target, reduction="batchmean")
    return lambda output, target: F.mse_loss(output, target.reshape(output.shape))


@dataclass(frozen=True)
class Distillation:
    """How a teacher counts.

    Attributes:
        temperature: That both outputs are divided by before they become distributions; None compares the outputs
            themselves by their mean squared difference, also those of classes (Ba & Caruana 2014). A ResNet-20 of half
            its parameters gained 49.4 points in 300 steps that way, and 48.4 at a temperature of 4.
        share: Of the teacher in the loss where there are labels, in (0, 1].
        layers: Weight of the relative squared difference of the outputs of the factorized layers; 0 leaves it out.
    """

    temperature: float | None = None
    share: float = 0.5
    layers: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise UsageError(f"`--temperature` takes a number above 0, got {self.temperature:g}.")
        if not 0 < self.share <= 1:
            raise UsageError(f"`--teacher-share` takes a share above 0 up to 1, got {self.share:g}.")
        if not self.layers >= 0:
            raise UsageError(f"`--match-layers` takes a weight from 0 on, got {self.layers:g}.")


class TrainingLoss:
    """The loss of a network on a batch.

    Args:
        task: What is learned.
        loss: Against labels.
        teacher: Network whose outputs are to be met.
        distillation: How much that counts.
        modules: Names of the factorized layers, in network and teacher alike.
    """

    def __init__(
        self,
        task: Task,
        loss: LossFunction,
        *,
        teacher: nn.Module | None = None,
        distillation: Distillation | None = None,
        modules: Sequence[str] = (),
    ) -> None:
        if teacher is None and not task.labelled:
            raise UsageError("The data has no labels. Give the dense checkpoint as `--teacher` to learn from.")
        self._task, self._loss, self.teacher = task, loss, teacher
        self._distillation = distillation or Distillation()
        self._modules = modules if teacher is not None and self._distillation.layers else ()
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Look at the outputs of the factorized layers of a network and of the teacher inside, if they count."""
        with ExitStack() as hooks:
            for network, seen in zip((model, self.teacher or model), self._seen, strict=True):
                for name in self._modules:
                    hook = network.get_submodule(name).register_forward_hook(_remember(seen, name))
                    hooks.callback(hook.remove)
            yield

    def __call__(self, model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        """Return the loss, a scalar."""
        output = apply(model, inputs).float()
        if self.teacher is None:
            return self._against_labels(output, target)
        with torch.no_grad():
            goal = apply(self.teacher, inputs).float()
        loss = self._distance(output, goal)
        if self._task.labelled:
            loss = self._distillation.share * loss + (1 - self._distillation.share) * self._against_labels(
                output, target
            )
        if self._modules:
            ours, theirs = self._seen
            differences = [_relative(ours.pop(name), theirs.pop(name)) for name in self._modules]
            loss = loss + self._distillation.layers * torch.stack(differences).mean()
        return loss

    def target(self, inputs: Any, target: Tensor | None) -> Tensor:
        """Return what metrics compare with: the labels, or what the teacher says."""
        if target is not None:
            return target
        if self.teacher is None:
            raise LrzipError("The data has no labels, so nothing can be measured.")
        goal = apply(self.teacher, inputs).float()
        return goal.argmax(1) if self._task.kind == CLASSIFICATION else goal

    def _against_labels(self, output: Tensor, target: Tensor | None) -> Tensor:
        if target is None:
            raise LrzipError("A batch has no labels, though the first one has.")
        return self._loss(output, target)

    def _distance(self, output: Tensor, goal: Tensor) -> Tensor:
        temperature = self._distillation.temperature
        if temperature is None or self._task.kind != CLASSIFICATION:
            return F.mse_loss(output, goal)
        # T² keeps the gradients at the scale of those of the labels (Hinton, Vinyals & Dean 2015, section 2).
        divergence = F.kl_div(
            F.log_softmax(output / temperature, 1),
            F.log_softmax(goal / temperature, 1),
            reduction="none",
            log_target=True,
        )
        return temperature**2 * divergence.sum(1).mean()


def _remember(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: object, output: object) -> None:
        del module, arguments
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            seen[name] = first

    return hook


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    theirs = theirs.float()
    return (ours.float() - theirs).square().mean() / theirs.square().mean().clamp_min(1e-12)

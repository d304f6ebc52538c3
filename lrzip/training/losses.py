"""Losses against labels, and distillation from a teacher."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.networks.build import locate
from lrzip.training.forward import apply, forward
from lrzip.training.tasks import CLASSIFICATION, IGNORED, Task, aligned, class_first

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Takes outputs and labels and returns a scalar."""
LOSSES = ("auto", "cross_entropy", "mse", "kl")


def make_loss(spec: str, task: Task, *, label_smoothing: float = 0.0) -> LossFunction:
    """Return a loss function of outputs and labels.

    Args:
        spec: `auto` is cross entropy for a classification and mean squared error for a regression; `kl` is the
            Kullback-Leibler divergence from labels that are distributions (n, classes); `pkg.mod:fn` is a function of
            outputs and labels that returns a scalar.
        task: The task.
        label_smoothing: Label smoothing of the cross entropy, in [0, 1).

    Raises:
        UsageError: There is no such loss, or it does not fit the task.
    """
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"`label_smoothing` takes a share from 0 to below 1, got {label_smoothing:g}.")
    if ":" in spec:
        function: LossFunction = locate(spec, "loss")
        return function
    if spec not in LOSSES:
        raise UsageError(f"`loss` takes {', '.join(LOSSES)} or `pkg.mod:fn`, got `{spec}`.")
    is_classification = task.kind == CLASSIFICATION
    name = spec if spec != "auto" else "cross_entropy" if is_classification else "mse"
    if task.labelled and (name == "cross_entropy") != is_classification:
        raise UsageError(f"`loss={name}` does not fit the data, which is {task.kind}.")
    if name == "cross_entropy":
        return lambda output, target: F.cross_entropy(
            *aligned(class_first(output, target), target, task), label_smoothing=label_smoothing, ignore_index=IGNORED
        )
    if name == "kl":
        return lambda output, target: F.kl_div(F.log_softmax(output, 1), target, reduction="batchmean")
    return lambda output, target: F.mse_loss(output, target.reshape(output.shape))


@dataclass(frozen=True)
class Distillation:
    """Hyperparameters of the distillation from a teacher.

    Attributes:
        temperature: Temperature of the softmax of both outputs, whose Kullback-Leibler divergence is the loss (Hinton,
            Vinyals & Dean 2015). None compares the outputs themselves by their mean squared difference, also for
            classification (Ba & Caruana 2014): a ResNet-20 with half of its parameters gained 49.4 percentage points
            in 300 steps that way, and 48.4 at a temperature of 4.
        share: Weight of the teacher in the loss if there are labels, in (0, 1].
        layers: Weight of the relative squared difference of the outputs of the factorized layers; 0 ignores them.
    """

    temperature: float | None = None
    share: float = 0.5
    layers: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise UsageError(f"`temperature` takes a number above 0, got {self.temperature:g}.")
        if not 0 < self.share <= 1:
            raise UsageError(f"`teacher_share` takes a share above 0 up to 1, got {self.share:g}.")
        if not self.layers >= 0:
            raise UsageError(f"`match_layers` takes a weight from 0 on, got {self.layers:g}.")


class TrainingLoss:
    """The training loss of a network: against labels, against a teacher, or a weighted sum of both.

    Args:
        task: The task.
        loss: Loss against labels.
        teacher: Network whose outputs the trained network is to reproduce.
        distillation: Weight and temperature of the teacher.
        modules: Names of the factorized layers, which student and teacher share.

    Raises:
        UsageError: There are neither labels nor a teacher.
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
            raise UsageError("The data has no labels. Give the dense checkpoint as `teacher` to learn from.")
        self._task, self._loss, self.teacher = task, loss, teacher
        self._distillation = distillation or Distillation()
        self._modules = modules if teacher is not None and self._distillation.layers else ()
        self._student_outputs: dict[str, Tensor] = {}
        self._teacher_outputs: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Record the outputs of the factorized layers of student and teacher inside the context, if needed."""
        networks = ((model, self._student_outputs), (self.teacher or model, self._teacher_outputs))
        with ExitStack() as hooks:
            for network, outputs in networks:
                for name in self._modules:
                    hook = network.get_submodule(name).register_forward_hook(_recorder(outputs, name))
                    hooks.callback(hook.remove)
            yield

    def __call__(self, model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        """Return the loss on a batch, a scalar.

        Raises:
            LrzipError: The batch has no labels, although the task has.
        """
        output, own = self._outputs(model, inputs, target)
        if self.teacher is None:
            return self._label_loss(output, target) if own is None else own
        with torch.no_grad():
            goal = apply(self.teacher, inputs).float()
        loss, share = self._distance(output, goal), self._distillation.share
        if self._task.labelled:
            loss = share * loss + (1 - share) * (self._label_loss(output, target) if own is None else own)
        return loss + self._distillation.layers * self._layer_loss() if self._modules else loss

    def target(self, inputs: Any, target: Tensor | None) -> Tensor:
        """Return the target of metrics: the labels if there are any, else the prediction of the teacher.

        Raises:
            LrzipError: There are neither.
        """
        if target is not None:
            return target
        if self.teacher is None:
            raise LrzipError("The data has no labels, so nothing can be measured.")
        goal = apply(self.teacher, inputs).float()
        return goal.argmax(_class_axis(goal)) if self._task.kind == CLASSIFICATION else goal

    def _outputs(self, model: nn.Module, inputs: Any, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the outputs of the network, and the loss of the labels if it computes that itself."""
        if not self._task.own_loss or target is None:
            return apply(model, inputs).float(), None
        output, own = forward(model, inputs, target)
        return output.float(), own

    def _label_loss(self, output: Tensor, target: Tensor | None) -> Tensor:
        if target is None:
            raise LrzipError("A batch has no labels, though the first one has.")
        return self._loss(output, target)

    def _distance(self, output: Tensor, goal: Tensor) -> Tensor:
        temperature = self._distillation.temperature
        if temperature is None or self._task.kind != CLASSIFICATION:
            return F.mse_loss(output, goal)
        # T² keeps the gradients at the scale of those of the labels (Hinton, Vinyals & Dean 2015, section 2).
        axis = _class_axis(output)
        divergence = F.kl_div(
            F.log_softmax(output / temperature, axis),
            F.log_softmax(goal / temperature, axis),
            reduction="none",
            log_target=True,
        )
        return temperature**2 * divergence.sum(axis).mean()

    def _layer_loss(self) -> Tensor:
        student, teacher = self._student_outputs, self._teacher_outputs
        differences = [_relative_difference(student.pop(name), teacher.pop(name)) for name in self._modules]
        return torch.stack(differences).mean()


def _class_axis(output: Tensor) -> int:
    """Return the axis of the classes: the last one for the tokens of a sequence, otherwise the one after samples."""
    return 2 if output.ndim == 3 else 1


def _recorder(outputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: object, output: object) -> None:
        del module, arguments
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            outputs[name] = first

    return hook


def _relative_difference(output: Tensor, goal: Tensor) -> Tensor:
    goal = goal.float()
    return (output.float() - goal).square().mean() / goal.square().mean().clamp_min(1e-12)

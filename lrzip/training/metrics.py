"""Metrics: those of torchmetrics by name, and functions supplied by the user."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

from lrzip.core.errors import LrzipError, UsageError, typed_line
from lrzip.core.memory import keep_freed_blocks
from lrzip.networks.build import locate
from lrzip.training.batches import Share
from lrzip.training.data.samples import Batch, Samples
from lrzip.training.forward import apply
from lrzip.training.tasks import CLASSIFICATION, IGNORED, REGRESSION, Task, aligned, class_first

METRICS = {
    "accuracy": CLASSIFICATION,
    "top5": CLASSIFICATION,
    "r2": REGRESSION,
    "rmse": REGRESSION,
    "mae": REGRESSION,
}
"""Kind of task by metric."""
_TOP = 5

TargetFunction = Callable[[Any, Tensor | None], Tensor]
"""Takes the inputs and the labels of a batch and returns what its outputs are compared with."""


class FunctionMetric(Metric):
    """A function of all outputs and all labels."""

    full_state_update = False
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.add_state("outputs", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Append the outputs and labels of a batch."""
        self.outputs.append(output)
        self.targets.append(target)

    def compute(self) -> Tensor:
        """Return the value of the function for all batches."""
        outputs, targets = (dim_zero_cat(x) for x in (self.outputs, self.targets))
        return torch.as_tensor(self.function(outputs, targets), dtype=torch.float64)


class Scorer:
    """Computes metrics of networks; the first one decides which state of a network is best.

    Args:
        specs: Names in `METRICS`, or `pkg.mod:fn`, a function of all outputs and labels or a torchmetrics Metric. The
            first one says which direction is better, by `pkg.mod:fn:max`, `pkg.mod:fn:min` or an attribute
            `higher_is_better`. By default `accuracy` or `r2`.
        task: The task.

    Raises:
        UsageError: There is no such metric, it does not fit the task, or the first one has no direction.
    """

    def __init__(self, specs: Sequence[str], task: Task) -> None:
        names = list(specs) or ["accuracy" if task.kind == CLASSIFICATION else "r2"]
        self._task = task
        self.metrics: Mapping[str, Metric] = {name: make_metric(name, task) for name in names}
        self.first = names[0]
        self.higher_is_better = _is_higher_better(self.first, self.metrics[self.first])

    def gain(self, scores: Mapping[str, float]) -> float:
        """Return the first metric, negated if lower is better; −∞ if it is not finite."""
        value = scores[self.first]
        if not isfinite(value):
            return float("-inf")
        return value if self.higher_is_better else -value

    def __call__(
        self,
        model: nn.Module,
        samples: Samples,
        *,
        target: TargetFunction | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        share: Share | None = None,
    ) -> dict[str, float]:
        """Return all metrics of a network on a set of samples.

        Args:
            model: The network, on `device`; the modes of its modules are restored.
            samples: Data.
            target: What outputs are compared with; by default the labels.
            device: Device to compute on.
            batch_size: Samples per batch.
            share: Share of this process, if there are several; the results are over the shares of all of them.

        Raises:
            LrzipError: The samples have no labels, or the code of a metric fails.
        """
        for metric in self.metrics.values():
            metric.reset()
            metric.to(device)
        keep_freed_blocks()
        with evaluating(model), torch.no_grad():
            for positions in _batches(len(samples), batch_size, share or Share()):
                # A process without remaining samples still runs the network: sharded weights need all processes.
                inputs, labels = _on_device(samples.fetch(positions or [0]), device)
                output = apply(model, inputs).float()
                if not positions:
                    continue
                goal = target(inputs, labels) if target else labels
                if goal is None:
                    raise LrzipError(f"`{samples.name}` has no labels, so nothing can be measured.")
                self._update(output, goal, labelled=labels is not None)
        return {name: _call(name, partial(_value, metric)) for name, metric in self.metrics.items()}

    def _update(self, output: Tensor, target: Tensor, *, labelled: bool) -> None:
        if self._task.kind == CLASSIFICATION:
            output = class_first(output, target)
        known = aligned(output, target, self._task) if labelled else (output, target)
        for name, metric in self.metrics.items():
            flat = name in METRICS and self._task.kind == REGRESSION
            of_name = known if name in METRICS else (output, target)
            arguments = (output.flatten(), target.flatten()) if flat else of_name
            _call(name, partial(metric.update, *arguments))


def make_metric(name: str, task: Task) -> Metric:
    """Return the metric of a name, or of `pkg.mod:fn`.

    Raises:
        UsageError: There is no such metric, or it does not fit the task.
        LrzipError: The object of that name is not a metric.
    """
    if ":" in name:
        found = locate(_split_direction(name)[0], "metrics")
        made = found() if isinstance(found, type) else found
        if not callable(made):
            raise LrzipError(f"`{name}` is {type(made).__name__}, not a function or a torchmetrics Metric.")
        return made if isinstance(made, Metric) else FunctionMetric(made)
    if name not in METRICS:
        raise UsageError(f"`metrics` takes {', '.join(METRICS)} or `pkg.mod:fn`, got `{name}`.")
    if METRICS[name] != task.kind:
        fitting = ", ".join(other for other, kind in METRICS.items() if kind == task.kind)
        raise UsageError(f"`metrics={name}` is for {METRICS[name]}; this is {task.kind}, which has {fitting}.")
    if name == "top5" and task.classes <= _TOP:
        raise UsageError(f"`metrics=top5` is always 1 for {task.classes} classes. Choose `accuracy`.")
    if METRICS[name] == CLASSIFICATION:
        top = _TOP if name == "top5" else 1
        return MulticlassAccuracy(task.classes, top_k=top, average="micro", ignore_index=IGNORED, validate_args=False)
    if name == "r2":
        return R2Score()
    return MeanSquaredError(squared=False) if name == "rmse" else MeanAbsoluteError()


def _split_direction(name: str) -> tuple[str, str | None]:
    """Return `pkg.mod:fn` and the direction, `min` or `max`, of `pkg.mod:fn:max`."""
    function, _, direction = name.rpartition(":")
    return (function, direction) if ":" in function and direction in ("min", "max") else (name, None)


def _is_higher_better(name: str, metric: Metric) -> bool:
    direction = _split_direction(name)[1]
    if direction is not None:
        return direction == "max"
    declared = getattr(metric.function if isinstance(metric, FunctionMetric) else metric, "higher_is_better", None)
    if declared is None and name not in METRICS:
        raise UsageError(f"`metrics={name}` has no direction. Give `{name}:max` or `{name}:min`, whichever is better.")
    return declared is not False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside the context, and restore the mode of each module after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _batches(count: int, batch_size: int, share: Share) -> Iterator[Sequence[int]]:
    """Yield the positions of the batches of one process; all processes get equally many, so the last may be empty."""
    positions = range(share.rank, count, share.count)
    for start in range(0, len(range(0, count, share.count)), batch_size):
        yield positions[start : start + batch_size]


def _value(metric: Metric) -> float:
    return float(metric.compute())


def _call(name: str, function: Callable[[], Any]) -> Any:
    """Call a function that may run code of the user."""
    try:
        return function()
    except Exception as error:
        raise LrzipError(
            f"`metrics={name}` failed: {typed_line(error)}. It takes all outputs and all labels, and returns one "
            "number."
        ) from error


def _on_device(batch: Batch, device: torch.device | str) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)

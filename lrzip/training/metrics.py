"""Metrics of torchmetrics by name, and functions of the user's as such."""

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
from lrzip.training.data.samples import Samples
from lrzip.training.forward import apply
from lrzip.training.tasks import CLASSIFICATION, REGRESSION, Task, class_first

METRICS = {
    "accuracy": CLASSIFICATION,
    "top5": CLASSIFICATION,
    "r2": REGRESSION,
    "rmse": REGRESSION,
    "mae": REGRESSION,
}
_TOP = 5


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
        """Keep a batch."""
        self.outputs.append(output)
        self.targets.append(target)

    def compute(self) -> Tensor:
        """Return what the function says of all batches."""
        outputs, targets = (dim_zero_cat(x) for x in (self.outputs, self.targets))
        return torch.as_tensor(self.function(outputs, targets), dtype=torch.float64)


class Scorer:
    """Measures networks; the first metric is the one that counts.

    Args:
        specs: Names of `METRICS`, or `pkg.mod:fn`, a function of all outputs and labels, or a torchmetrics Metric. More
            is better unless it has `higher_is_better = False`. By default `accuracy` or `r2`.
        task: What is learned.

    Raises:
        UsageError: There is no such metric, or the task cannot have it.
    """

    def __init__(self, specs: Sequence[str], task: Task) -> None:
        names = list(specs) or ["accuracy" if task.kind == CLASSIFICATION else "r2"]
        self._task = task
        self.metrics: Mapping[str, Metric] = {name: _metric(name, task) for name in names}
        self.first = names[0]
        counting = self.metrics[self.first]
        counted = counting.function if isinstance(counting, FunctionMetric) else counting
        self.higher_is_better = getattr(counted, "higher_is_better", None) is not False

    def gain(self, scores: Mapping[str, float]) -> float:
        """Return the first metric so that more is better; what is no number is worst."""
        value = scores[self.first]
        if not isfinite(value):
            return float("-inf")
        return value if self.higher_is_better else -value

    def __call__(
        self,
        model: nn.Module,
        samples: Samples,
        *,
        target: Callable[[Any, Tensor | None], Tensor] | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        part: tuple[int, int] = (0, 1),
    ) -> dict[str, float]:
        """Return all metrics of a network on some examples.

        Args:
            model: On `device`; its mode stays.
            samples: What to measure on.
            target: What stands for the labels of a batch.
            device: Where to compute.
            batch_size: Examples at a time.
            part: Which process of how many this is; each measures its share, and the results are of all.
        """
        for metric in self.metrics.values():
            metric.reset()
            metric.to(device)
        keep_freed_blocks()
        rank, count = part
        positions = range(rank, len(samples), count)
        with evaluating(model), torch.no_grad():
            # All processes run the network equally often, since weights that are shared out take them all.
            for start in range(0, len(range(0, len(samples), count)), batch_size):
                here = positions[start : start + batch_size]
                inputs, labels = _moved(samples.fetch(here or [0]), device)
                output = apply(model, inputs).float()
                if not here:
                    continue
                wanted = target(inputs, labels) if target else labels
                if wanted is None:
                    raise LrzipError(f"`{samples.name}` has no labels, so nothing can be measured.")
                self._update(output, wanted)
        return {name: _called(name, partial(_value, metric)) for name, metric in self.metrics.items()}

    def _update(self, output: Tensor, target: Tensor) -> None:
        if self._task.kind == CLASSIFICATION:
            output = class_first(output, target)
        for name, metric in self.metrics.items():
            flat = name in METRICS and self._task.kind == REGRESSION
            arguments = (output.flatten(), target.flatten()) if flat else (output, target)
            _called(name, partial(metric.update, *arguments))


def _value(metric: Metric) -> float:
    return float(metric.compute())


def _called(name: str, function: Callable[[], Any]) -> Any:
    """Call what may be code of the user's."""
    try:
        return function()
    except Exception as error:
        raise LrzipError(
            f"`--metric {name}` failed: {typed_line(error)}. It takes all outputs and all labels, and "
            "returns one number."
        ) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each module back into its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _metric(name: str, task: Task) -> Metric:
    if ":" in name:
        found = locate(name, "--metric")
        made = found() if isinstance(found, type) else found
        if not callable(made):
            raise LrzipError(f"`{name}` is {type(made).__name__}, not a function or a torchmetrics Metric.")
        return made if isinstance(made, Metric) else FunctionMetric(made)
    if name not in METRICS:
        raise UsageError(f"`--metric` takes {', '.join(METRICS)} or `pkg.mod:fn`, got `{name}`.")
    if METRICS[name] != task.kind:
        fitting = ", ".join(other for other, kind in METRICS.items() if kind == task.kind)
        raise UsageError(f"`--metric {name}` is for {METRICS[name]}; this is {task.kind}, which has {fitting}.")
    if name == "top5" and task.classes <= _TOP:
        raise UsageError(f"`--metric top5` says nothing of {task.classes} classes.")
    if METRICS[name] == CLASSIFICATION:
        top = _TOP if name == "top5" else 1
        return MulticlassAccuracy(task.classes, top_k=top, average="micro", validate_args=False)
    if name == "r2":
        return R2Score()
    return MeanSquaredError(squared=False) if name == "rmse" else MeanAbsoluteError()


def _moved(batch: Any, device: torch.device | str) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)

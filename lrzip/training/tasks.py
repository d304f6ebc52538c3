"""What is learned: classes or numbers, told by the labels and by what the network puts out."""

from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from lrzip.core.errors import LrzipError
from lrzip.training.data.samples import Samples

CLASSIFICATION = "classification"
REGRESSION = "regression"


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        kind: `classification` or `regression`.
        classes: Number of classes; 0 in regression.
        labelled: Whether there are labels.
    """

    kind: str
    classes: int
    labelled: bool


def find_task(samples: Samples, output: Tensor, *, distance: str | None = None) -> Task:
    """Return what a network that puts out such tensors learns from some examples.

    Args:
        samples: Integer labels are classes, others numbers.
        output: For a batch of the first examples.
        distance: Loss that was asked for; without labels, `mse` says that the outputs are numbers.

    Raises:
        LrzipError: Labels do not fit the output.
    """
    _, target = samples.fetch(range(min(len(output), len(samples))))
    if target is None:
        numbers = distance == "mse" or output.ndim < 2 or output.shape[1] == 1
        return (
            Task(REGRESSION, 0, labelled=False) if numbers else Task(CLASSIFICATION, output.shape[-1], labelled=False)
        )
    labels = samples.labels
    if target.is_floating_point():
        check_numbers(output, target, samples.name)
        return Task(REGRESSION, 0, labelled=True)
    classes = class_first(output, target).shape[1] if output.ndim > 1 else 0
    if classes < 2:
        raise LrzipError(
            f"`{samples.name}` has integer labels, which are classes, but the network puts out "
            f"{tuple(output.shape[1:])} for an example. Give labels as floating-point numbers for a regression."
        )
    expected = class_first(output, target).shape[2:]
    if target.shape[1:] != expected:
        raise LrzipError(
            f"`{samples.name}` has classes of shape {tuple(target.shape[1:])} for an example, but the network puts out "
            f"{tuple(output.shape[1:])}, which takes {tuple(expected)}."
        )
    if labels is not None:
        check_classes(labels, classes, samples.name)
    return Task(CLASSIFICATION, classes, labelled=True)


def check_classes(labels: Tensor, classes: int, name: str) -> None:
    """Refuse labels that are no class."""
    bad = ((labels < 0) | (labels >= classes)).nonzero()
    if len(bad):
        first = tuple(bad[0].tolist())
        raise LrzipError(
            f"`{name}` has the label {int(labels[first])} in row {first[0]}, but the network puts out {classes} "
            f"classes, 0 to {classes - 1}."
        )


def check_numbers(output: Tensor, target: Tensor, name: str) -> None:
    """Refuse numbers of another shape than the network's output."""
    if output[:1].numel() != target[:1].numel():
        raise LrzipError(
            f"`{name}` has numbers of shape {tuple(target.shape[1:])} for an example, but the network puts out "
            f"{tuple(output.shape[1:])}. Classes are integers."
        )


def class_first(output: Tensor, target: Tensor) -> Tensor:
    """Return outputs (n, classes, …) for labels (n, …), also where the network puts the classes last."""
    if output.ndim > 2 and output.shape[:-1] == target.shape and output.shape[2:] != target.shape[1:]:
        return output.movedim(-1, 1)
    return output


def finite(value: float | None) -> float | None:
    """Return a number as JSON can hold it: None for what is none."""
    return value if value is not None and isfinite(value) else None

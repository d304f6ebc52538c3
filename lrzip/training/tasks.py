"""The task that labels and outputs imply: classification or regression."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Samples
from lrzip.training.forward import probe

CLASSIFICATION = "classification"
REGRESSION = "regression"
IGNORED = -100
"""Label of the positions that count neither in a loss nor in a metric, as in torch and transformers."""


@dataclass(frozen=True)
class Task:
    """A supervised task.

    Attributes:
        kind: `classification` or `regression`.
        classes: Number of classes; 0 for a regression.
        labelled: Whether the data has labels.
        shifted: Whether the output at a position predicts the label of the next one, as in causal language models.
        own_loss: Whether the network computes its loss from the labels itself.
    """

    kind: str
    classes: int
    labelled: bool
    shifted: bool = False
    own_loss: bool = False

    @property
    def remark(self) -> str | None:
        """How the loss is computed, where that is not the cross entropy or the difference of outputs and labels."""
        what = "the label of the next position" if self.shifted else "the label of the same position"
        if self.own_loss:
            return f"the loss is computed by the network; each output predicts {what}"
        return f"each output predicts {what}" if self.shifted else None


def task_of(model: nn.Module, data: Data, loss: str) -> Task:
    """Return the task of a network on a training set, after checking that both sets fit the network.

    Args:
        model: The network, on the CPU.
        data: Training set, and validation set if there is one.
        loss: Name of the loss; without labels, `mse` implies a regression.

    Raises:
        LrzipError: A set does not fit the network, or the two sets have labels of different kinds.
    """
    task = find_task(data.train, probe(model, data.train), loss=loss)
    if data.val is None:
        return task
    other = find_task(data.val, probe(model, data.val), loss=loss)
    if replace(other, labelled=task.labelled) != task:
        raise LrzipError(f"`{data.val.name}` has labels of another kind than `{data.train.name}`.")
    return task


def find_task(samples: Samples, output: Tensor, *, loss: str = "auto") -> Task:
    """Return the task of a network, given its output for the first samples.

    Args:
        samples: Data; integer labels are classes, floating-point labels are regression targets.
        output: Output for a batch of the first samples, (n, …).
        loss: Name of the loss; without labels, `mse` implies a regression.

    Raises:
        LrzipError: The labels do not fit the output.
    """
    inputs, target = samples.fetch(range(min(len(output), len(samples))))
    if target is None:
        if loss == "mse" or not _are_class_scores(inputs, output):
            return Task(REGRESSION, 0, labelled=False)
        return Task(CLASSIFICATION, output.shape[-1], labelled=False)
    if target.is_floating_point():
        _check_targets(output, target, samples.name)
        return Task(REGRESSION, 0, labelled=True)
    classes = class_first(output, target).shape[1] if output.ndim > 1 else 0
    if classes < 2:
        raise LrzipError(
            f"`{samples.name}` has integer labels, which are classes, but the network returns shape "
            f"{tuple(output.shape[1:])} for a sample. Give labels as floating-point numbers for a regression."
        )
    expected = class_first(output, target).shape[2:]
    if target.shape[1:] != expected:
        raise LrzipError(
            f"`{samples.name}` has classes of shape {tuple(target.shape[1:])} for a sample, but the network returns "
            f"shape {tuple(output.shape[1:])}, which takes {tuple(expected)}."
        )
    if samples.labels is not None:
        _check_classes(samples.labels, classes, samples.name)
    return Task(CLASSIFICATION, classes, labelled=True)


def _are_class_scores(inputs: Any, output: Tensor) -> bool:
    """Return whether outputs without labels are scores of classes: those of each sample, or of each token.

    Other outputs with several axes may be anything, such as the boxes of a detector.
    """
    if output.ndim == 2:
        return output.shape[1] > 1
    leaves = (leaf for leaf in torch.utils._pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    tokens = (leaf.shape for leaf in leaves if not leaf.is_floating_point())
    return output.ndim == 3 and output.shape[:2] in tokens and output.shape[2] > 1


def class_first(output: Tensor, target: Tensor) -> Tensor:
    """Return outputs as (n, classes, …) for class labels (n, …); language models return the classes last."""
    if output.ndim > 2 and output.shape[:-1] == target.shape and output.shape[2:] != target.shape[1:]:
        return output.movedim(-1, 1)
    return output


def aligned(output: Tensor, target: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Return outputs (n, classes, …) and labels (n, …) of which each output predicts the label at its own position."""
    return (output[..., :-1], target[..., 1:]) if task.shifted else (output, target)


def _check_classes(labels: Tensor, classes: int, name: str) -> None:
    ignored = (labels == IGNORED) & (labels.ndim > 1)
    invalid = (((labels < 0) | (labels >= classes)) & ~ignored).nonzero()
    if len(invalid):
        first = tuple(invalid[0].tolist())
        raise LrzipError(
            f"`{name}` has the label {int(labels[first])} in row {first[0]}, but the network has {classes} classes, "
            f"0 to {classes - 1}."
        )


def _check_targets(output: Tensor, target: Tensor, name: str) -> None:
    if output[:1].numel() != target[:1].numel():
        raise LrzipError(
            f"`{name}` has numbers of shape {tuple(target.shape[1:])} for a sample, but the network returns shape "
            f"{tuple(output.shape[1:])}. Give classes as integers."
        )

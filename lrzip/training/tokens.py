"""Labels of each position of a sequence: which outputs they belong to, and who computes the loss.

A causal language model predicts the next token at each position. Transformers' data sets give its inputs as labels, and
the model moves them by one position itself; others give labels that are moved already.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.training.data.samples import Samples
from lrzip.training.forward import apply, forward
from lrzip.training.tasks import CLASSIFICATION, IGNORED, Task, aligned, class_first

_PROBED_SAMPLES = 8
# Relative difference up to which two losses count as equal.
_TOLERANCE = 1e-3


def with_alignment(model: nn.Module, samples: Samples, task: Task, loss: str) -> Task:
    """Return a task with the position that each label belongs to, and whether the network computes the loss.

    Args:
        model: The network, on the CPU.
        samples: Training data.
        task: Its task.
        loss: Name of the loss; `auto` is that of the network, if it computes one of labels for each position.

    Raises:
        LrzipError: The labels are the inputs, and the network sees those that it would have to predict.
    """
    inputs, labels = samples.fetch(range(min(_PROBED_SAMPLES, len(samples))))
    if task.kind != CLASSIFICATION or labels is None or labels.ndim != 2 or labels.shape[1] < 2:
        return task
    tokens = _tokens(inputs, labels)
    known = labels != IGNORED
    copies = tokens is not None and torch.equal(tokens[known], labels[known])
    if tokens is not None and not copies and _are_next(tokens, labels):
        return task
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            if takes_labels(model):
                output, own = forward(model, inputs, labels)
                if own is not None:
                    shifted = _is_shifted(output.float(), labels, float(own), task)
                    return replace(task, own_loss=loss == "auto", shifted=copies if shifted is None else shifted)
            if not copies or tokens is None:
                return task
            if _is_causal(model, inputs, tokens):
                return replace(task, shifted=True)
    finally:
        model.train(mode)
    raise LrzipError(
        f"The labels of `{samples.name}` are its inputs, and the network sees all of them, so that it would learn to "
        "copy them. Give the tokens to predict as labels."
    )


def takes_labels(model: nn.Module) -> bool:
    """Return whether a network takes labels as an input, from which it may compute its own loss."""
    return "labels" in inspect.signature(model.forward).parameters


def _tokens(inputs: Any, labels: Tensor) -> Tensor | None:
    """Return the inputs that have the shape of the labels: those of a language model."""
    leaves = [inputs.get("input_ids"), *inputs.values()] if isinstance(inputs, Mapping) else [inputs]
    leaves = [item for leaf in leaves for item in (leaf if isinstance(leaf, tuple | list) else (leaf,))]
    found = (leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_floating_point())
    return next((leaf for leaf in found if leaf.shape == labels.shape), None)


def _are_next(tokens: Tensor, labels: Tensor) -> bool:
    """Return whether each label is the token of the next position."""
    known = labels[:, :-1] != IGNORED
    return bool(known.any()) and torch.equal(tokens[:, 1:][known], labels[:, :-1][known])


def _is_shifted(output: Tensor, labels: Tensor, own: float, task: Task) -> bool | None:
    """Return whether the loss of the network is that of the next position; None if it is neither."""
    losses = {shifted: _cross_entropy(output, labels, replace(task, shifted=shifted)) for shifted in (True, False)}
    nearest = min(losses, key=lambda shifted: abs(losses[shifted] - own))
    return nearest if abs(losses[nearest] - own) <= _TOLERANCE * abs(own) else None


def _cross_entropy(output: Tensor, labels: Tensor, task: Task) -> float:
    output, labels = aligned(class_first(output, labels), labels, task)
    return float(F.cross_entropy(output, labels, ignore_index=IGNORED))


def _is_causal(model: nn.Module, inputs: Any, tokens: Tensor) -> bool:
    """Return whether outputs do not depend on the tokens of later positions."""
    changed = tokens.clone()
    changed[:, -1] = torch.where(tokens[:, -1] == tokens[:, 0], (tokens[:, -1] == 0).to(tokens), tokens[:, 0])
    others = torch.utils._pytree.tree_map(lambda leaf: changed if leaf is tokens else leaf, inputs)
    before, after = apply(model, inputs), apply(model, others)
    return torch.allclose(before[:, :-1], after[:, :-1], rtol=1e-4, atol=1e-5)

"""The forward pass of a network, whatever the structure of its inputs and outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError, typed_line
from lrzip.networks.inputs import described
from lrzip.training.data.samples import Samples

_PROBED_SAMPLES = 2


def apply(model: nn.Module, inputs: Any) -> Tensor:
    """Return the output of a network: the tensor itself, `logits` of a structured output, or else its first tensor.

    Args:
        model: The network.
        inputs: A tensor, a tuple of positional inputs or a mapping of named inputs.

    Raises:
        LrzipError: The output contains no tensor.
    """
    return _output(_call(model, inputs))


def forward(model: nn.Module, inputs: Any, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the output of a network that also takes labels, and the loss that it computes from them, if it does.

    Args:
        model: The network, whose `forward` has an argument `labels`.
        inputs: A tensor, a tuple of positional inputs or a mapping of named inputs.
        labels: Labels.

    Raises:
        LrzipError: The output contains no tensor.
    """
    result = _call(model, inputs, labels=labels)
    loss = _field(result, "loss")
    return _output(result), loss if isinstance(loss, Tensor) and loss.ndim == 0 else None


def _call(model: nn.Module, inputs: Any, **others: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs, **others)
    return model(*inputs, **others) if isinstance(inputs, tuple | list) else model(inputs, **others)


def _output(result: Any) -> Tensor:
    for candidate in (result, _field(result, "logits"), *torch.utils._pytree.tree_leaves(result)):
        if isinstance(candidate, Tensor):
            return candidate
    raise LrzipError(f"The network returns {type(result).__name__} without a tensor, so there is nothing to train on.")


def _field(result: Any, name: str) -> Any:
    return result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)


def probe(model: nn.Module, samples: Samples, *, memory_format: torch.memory_format | None = None) -> Tensor:
    """Return the output of a network, on the CPU and in evaluation mode, for the first samples.

    Args:
        model: The network; its mode is restored.
        samples: Data.
        memory_format: Memory format of the inputs; None leaves it unchanged.

    Raises:
        LrzipError: The network does not take such inputs.
    """
    inputs, _ = samples.fetch(range(min(_PROBED_SAMPLES, len(samples))))
    if memory_format is not None:
        inputs = inputs.contiguous(memory_format=memory_format)
    mode = model.training
    try:
        with torch.no_grad():
            return apply(model.eval(), inputs)
    except LrzipError:
        raise
    except Exception as error:
        raise LrzipError(
            f"The network does not take the inputs of `{samples.name}`, {described(inputs)}: {typed_line(error)}."
        ) from error
    finally:
        model.train(mode)


def use_channels_last(model: nn.Module, samples: Samples) -> bool:
    """Convert the weights of a network to torch's channels_last memory format and return whether that was done.

    It is done for networks that convolve images and run in that format; a network that calls `view` on its activations
    does not, and is left unchanged. On two cores, a training step of ResNet-20 took two thirds of
    the time in that format.

    Args:
        model: The network, converted in place.
        samples: Data.
    """
    inputs, _ = samples.fetch(range(min(_PROBED_SAMPLES, len(samples))))
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        return False
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return False
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        probe(model, samples, memory_format=torch.channels_last)
    except LrzipError:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return False
    return True

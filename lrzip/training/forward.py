"""Running a network on a batch, whatever it takes and returns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError, typed_line
from lrzip.networks.inputs import described
from lrzip.training.data.samples import Samples

_EXAMPLES = 2


def apply(model: nn.Module, inputs: Any) -> Tensor:
    """Return the output of a network: the first tensor of several, or `logits` where there is an output of that name.

    Args:
        model: The network.
        inputs: A tensor, a tuple of positional or a mapping of named ones.
    """
    if isinstance(inputs, Mapping):
        result = model(**inputs)
    elif isinstance(inputs, tuple | list):
        result = model(*inputs)
    else:
        result = model(inputs)
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    for found in (result, logits, *torch.utils._pytree.tree_leaves(result)):
        if isinstance(found, Tensor):
            return found
    raise LrzipError(f"The network returns {type(result).__name__} without a tensor, so nothing to train by.")


def probe(model: nn.Module, samples: Samples, *, memory_format: torch.memory_format | None = None) -> Tensor:
    """Return the output for the first examples, on the CPU, with inputs in some order of memory.

    Raises:
        LrzipError: The network does not take such inputs.
    """
    inputs, _ = samples.fetch(range(min(_EXAMPLES, len(samples))))
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


def images_last(model: nn.Module, samples: Samples) -> bool:
    """Put the weights of a network into torch's channels_last order, where it convolves images and runs in that order.

    A training step of ResNet-20 took two thirds of the time on two cores. A network that views its activations as they
    lie in memory does not run so, and is left as it was.
    """
    inputs, _ = samples.fetch(range(min(_EXAMPLES, len(samples))))
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

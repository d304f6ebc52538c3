"""The optimizers of a training."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lrzip.training.settings import Settings


def make_optimizer(parameters: Iterable[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer of the trainable parameters; vectors (biases and norms) have no weight decay."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": settings.decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.rate, momentum=0.9, nesterov=True)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, settings.rate, fused=True)


def state_entries(settings: Settings) -> Mapping[str, bool]:
    """Return the names of the tensors that the optimizer keeps for a parameter, and whether they have its shape."""
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = make_optimizer([parameter], settings)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name: value.shape == parameter.shape for name, value in optimizer.state[parameter].items()}

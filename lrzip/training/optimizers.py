"""The optimizers of a training."""

from collections.abc import Iterable

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

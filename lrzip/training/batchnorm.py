"""Batch norms whose statistics are computed over the batches of all processes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a network whose batch norms compute their statistics over the batches of all processes."""
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.forward = _GlobalBatchNorm(module)  # type: ignore[method-assign, assignment]
    return model


class _GlobalBatchNorm:
    """The forward pass of a batch norm over all processes on the CPU, which torch's SyncBatchNorm does not support.

    All processes have batches of the same size.
    """

    def __init__(self, module: _BatchNorm) -> None:
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        module = self._module
        if not module.training:
            return type(module).forward(module, x)
        dims = (0, *range(2, x.ndim))
        count = x.numel() // x.shape[1] * torch.distributed.get_world_size()
        mean = _sum_over_processes(x.sum(dims)) / count
        centered = x - _per_channel(mean, x)
        variance = _sum_over_processes(centered.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach() * count / max(count - 1, 1))
        y = centered * _per_channel(torch.rsqrt(variance + module.eps), x)
        return y if module.weight is None else y * _per_channel(module.weight, x) + _per_channel(module.bias, x)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        module = self._module
        if module.running_mean is None or module.running_var is None:
            return
        momentum = module.momentum
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            momentum = 1 / float(module.num_batches_tracked) if momentum is None else momentum
        module.running_mean.lerp_(mean, float(momentum or 0))
        module.running_var.lerp_(variance, float(momentum or 0))


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        del context
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(context, gradients[0])


def _sum_over_processes(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))

"""The processes that train together: one, or those of torchrun."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lrzip.core.errors import LrzipError


def make_accelerator(device: str, amp: str) -> Accelerator:
    """Return what knows about the device and the other processes.

    Args:
        device: `cpu`, `cuda`, `cuda:1`; under torchrun each process takes the GPU of its number.
        amp: Precision to compute in: `no`, `bf16` or `fp16`.
    """
    wanted = _checked_device(device)
    # accelerate keeps the first settings of a process for good; each training of ours has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    if wanted.type == "cuda" and wanted.index is not None and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(wanted)
    if amp == "fp16" and wanted.type == "cpu":
        raise LrzipError("`--amp fp16` needs a GPU. On the CPU there is `--amp bf16`.")
    return Accelerator(cpu=wanted.type == "cpu", mixed_precision=amp)


def precision(amp: str, device: str, *, images: bool) -> str:
    """Return what `auto` stands for: `bf16` where that halves the time of a step, else `no`.

    A step of ResNet-20 took 0.59 of the time on a core with AVX512-BF16; what is not convolved gains little or loses.

    Args:
        amp: Precision that was asked for.
        device: Where to compute.
        images: Whether the network convolves images.
    """
    if amp != "auto":
        return amp
    return "bf16" if images and _computes_bf16(_checked_device(device)) else "no"


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:
        said = str(error).strip().partition("\n")[0].rstrip(".")
        raise LrzipError(f"`--device {name}` cannot be used: {said}.") from error
    return device


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Make the same computation give the same bytes, and leave the random numbers of the caller as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make batch norms take their statistics over the batches of all processes, as one process would."""
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.forward = _GlobalBatchNorm(module)  # type: ignore[method-assign, assignment]
    return model


class _GlobalBatchNorm:
    """The forward pass of a batch norm over all processes, for the CPU, which torch's SyncBatchNorm leaves out.

    Batches are of one size in all processes.
    """

    def __init__(self, module: _BatchNorm) -> None:
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        module = self._module
        if not module.training:
            return type(module).forward(module, x)
        dims = (0, *range(2, x.ndim))
        count = x.numel() // x.shape[1] * torch.distributed.get_world_size()
        mean = _summed(x.sum(dims)) / count
        centered = x - _spread(mean, x)
        variance = _summed(centered.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach() * count / max(count - 1, 1))
        y = centered * _spread(torch.rsqrt(variance + module.eps), x)
        return y if module.weight is None else y * _spread(module.weight, x) + _spread(module.bias, x)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        module = self._module
        if module.running_mean is None or module.running_var is None:
            return
        share = module.momentum
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            share = 1 / float(module.num_batches_tracked) if share is None else share
        module.running_mean.lerp_(mean, float(share or 0))
        module.running_var.lerp_(variance, float(share or 0))


class _Sum(torch.autograd.Function):
    """The sum over all processes, on whose gradient each of them has a part."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        del context
        summed = values.clone()
        torch.distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(context, gradients[0])


def _summed(values: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return summed


def _spread(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))

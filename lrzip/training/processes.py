"""The processes and the device of a training: one process, or those started by torchrun."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lrzip.core.errors import LrzipError, first_line


def make_accelerator(device: str, amp: str) -> Accelerator:
    """Return the accelerator for a device and the processes of torchrun.

    Args:
        device: Such as `cpu`, `cuda` or `cuda:1`; under torchrun each process uses the GPU of its rank.
        amp: Precision of the forward pass: `no`, `bf16` or `fp16`.

    Raises:
        LrzipError: The device does not exist or does not have this precision.
    """
    checked = _checked_device(device)
    # accelerate keeps the settings of the first Accelerator of a process; each training has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    if checked.type == "cuda" and checked.index is not None and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(checked)
    if amp == "fp16" and checked.type == "cpu":
        raise LrzipError("`amp=fp16` needs a GPU. On the CPU there is `amp=bf16`.")
    return Accelerator(cpu=checked.type == "cpu", mixed_precision=amp)


def precision(amp: str, device: str, *, images: bool) -> str:
    """Resolve `auto` to `bf16` where the device computes in it natively and the network convolves images, else `no`.

    With bf16, a step of ResNet-20 took 0.59 of the time on a core with AVX512-BF16; networks without convolutions
    gain little or become slower.

    Args:
        amp: Requested precision.
        device: Device to compute on.
        images: Whether the network convolves images.
    """
    if amp != "auto":
        return amp
    return "bf16" if images and _has_native_bf16(_checked_device(device)) else "no"


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # absent in older versions
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:
        raise LrzipError(f"`device={name}` cannot be used: {first_line(error)}.") from error
    return device


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Use deterministic kernels inside the context, and restore the state of the random generators after it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield

"""Decide whether a subclass of nn.Linear that overrides `forward` still computes a linear layer."""

import copy
from inspect import signature

import torch
from torch import nn

_INPUTS, _OUTPUTS = 5, 3
# Scales of inputs, so that clamps, quantization and other nonlinearities show.
_SCALES = (1e-3, 1.0, 1e3)


def computes_linear(module: nn.Linear) -> bool:
    """Return whether `forward` of a subclass of nn.Linear computes the same as nn.Linear.

    It is called on a copy with few features and random weights, for vectors, batches and sequences. A subclass whose
    `forward` needs other sizes, other parameters or other arguments does not count as a linear layer.
    """
    if module._parameters.keys() != {"weight", "bias"} or module._buffers or module._modules:
        return False
    if len(signature(type(module).forward).parameters) != 2:  # self and the input
        return False
    small = copy.copy(module)
    small.__dict__["in_features"], small.__dict__["out_features"] = _INPUTS, _OUTPUTS
    generator = torch.Generator().manual_seed(0)
    bias = None if module.bias is None else nn.Parameter(_random((_OUTPUTS,), generator))
    small.__dict__["_parameters"] = {"weight": nn.Parameter(_random((_OUTPUTS, _INPUTS), generator)), "bias": bias}
    return all(
        _agrees(small, _random((*sizes, _INPUTS), generator) * scale)
        for sizes in ((), (4,), (2, 3))
        for scale in _SCALES
    )


@torch.no_grad()
def _agrees(module: nn.Linear, x: torch.Tensor) -> bool:
    expected = nn.Linear.forward(module, x)
    try:
        found = type(module).forward(module, x)
    except Exception:  # it is foreign code, which may fail in any way on sizes that it was not built for
        return False
    same_kind = isinstance(found, torch.Tensor) and found.shape == expected.shape and found.dtype == expected.dtype
    return same_kind and torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * float(x.abs().max()))


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

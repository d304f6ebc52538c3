"""Subnormal numbers, with which CPUs compute many times more slowly, and which do not change results."""

import torch
from torch import Tensor

# Below this, no number matters beside the others of a layer, whatever their dtype.
_NEGLIGIBLE = torch.finfo(torch.float32).tiny
# Numbers just above the subnormal ones are set to 0 with them: almost any product with them is subnormal.
_MARGIN = 1.01


def stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a factor in the dtype in which it is stored, without subnormal numbers."""
    return flush_subnormals(tensor.to(dtype))


def flush_subnormals(tensor: Tensor) -> Tensor:
    """Return a tensor whose subnormal numbers are 0; the tensor itself if it has none, or is not of floating point.

    The subnormal numbers of float16 begin at 6e-5. Where they hold more of the norm of a tensor than rounding
    does, they are kept: all numbers of a layer may be as small as this.
    """
    if not tensor.is_floating_point():
        return tensor
    subnormal = subnormals(tensor, _MARGIN)
    if not bool(subnormal.any()):
        return tensor
    flushed: Tensor = tensor.masked_fill(subnormal, 0)
    info = torch.finfo(tensor.dtype)
    if info.tiny > _NEGLIGIBLE:
        norm, lost = (torch.linalg.vector_norm(part, dtype=torch.float64) for part in (tensor, tensor - flushed))
        return flushed if float(lost) <= info.eps * float(norm) else tensor
    return flushed


def subnormals(tensor: Tensor, margin: float = 1.0) -> Tensor:
    """Return a mask of the numbers that are not 0 and below the smallest normal number of the dtype, times a margin."""
    mask: Tensor = (tensor != 0) & (tensor.abs() < margin * torch.finfo(tensor.dtype).tiny)
    return mask

"""Typed reading of tensors in documents, next to the readers of `lrzip.core.documents`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrzip.core.documents import Place, Reader


def tensor(shape: Sequence[int] | None = None, *, largest: float | None = None) -> Reader[Tensor]:
    """Return a reader of a dense tensor with data.

    Args:
        shape: Its shape; None for any.
        largest: Largest absolute value; without one, values may be NaN or infinite.
    """

    def read(value: Any, place: Place) -> Tensor:
        if not isinstance(value, Tensor):
            raise place.wrong("a tensor", value)
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise place.fault(f"must be a dense tensor with data, got {kind_of(value)}")
        if shape is not None and tuple(value.shape) != tuple(shape):
            raise place.fault(f"must have the shape {tuple(shape)}, got {tuple(value.shape)}")
        if largest is not None and value.numel() and not bool((value.abs() <= largest).all()):
            raise place.fault(f"must hold finite numbers of at most {largest:g}, got {_extreme(value):g}")
        return value

    return read


def kind_of(value: Tensor) -> str:
    """Return what keeps a tensor from being dense and in memory: sparse, quantized or without data."""
    if value.is_meta:
        return "one without data (meta)"
    return "a quantized one" if value.is_quantized else f"a sparse one ({str(value.layout).removeprefix('torch.')})"


def _extreme(value: Tensor) -> float:
    """Return the first value that is not finite, or else the largest."""
    flat = value.flatten()
    bad = flat[~torch.isfinite(flat)]
    return float(bad[0] if len(bad) else flat.abs().max())

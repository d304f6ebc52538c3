"""Masks of calibration data: positions of padded sequences, which count in no statistics."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.moments import Arguments

MASK = "attention_mask"
"""Name that transformers' networks give to the mask of an input of shape (samples, positions)."""


def mask_of(arguments: Arguments, inputs: Sequence[str]) -> Tensor | None:
    """Return the positions that count, (samples, positions) of bool, or None if all do.

    Args:
        arguments: Arguments of a call.
        inputs: Names of the inputs of the network, in order.
    """
    args, kwargs = arguments
    value = (dict(zip(inputs, args, strict=False)) | kwargs).get(MASK)
    if not isinstance(value, Tensor) or value.ndim != 2 or value.is_floating_point():
        return None
    mask = value != 0
    return None if bool(mask.all()) else mask


def kept(mask: Tensor | None, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return values (samples, positions, …) at the positions that a mask keeps; others are returned unchanged."""
    if mask is None:
        return tuple(values)
    return tuple(value[mask] if value.shape[:2] == mask.shape else value for value in values)


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Let a network of transformers return no cache of keys and values, which torch.export cannot follow."""
    config: Any = getattr(model, "config", None)
    settings: Mapping[str, Any] = getattr(config, "__dict__", {})
    before = settings.get("use_cache")
    if not isinstance(before, bool):
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = before


def hides_everything(masks: Sequence[Tensor | None]) -> bool:
    """Return whether masks keep no position at all."""
    return all(mask is not None and not bool(torch.any(mask)) for mask in masks)

"""Callbacks that report the progress of work on layers."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imports torch, which would slow down `--help`
    from lrzip.core.layers import Layer

Progress = Callable[[str, "Layer", int, int], None]
"""Called before each layer with the phase, the layer, its index and the number of layers."""


def silent(phase: str, layer: "Layer", index: int, count: int) -> None:
    """Report nothing."""
    del phase, layer, index, count

"""The callback by which long computations report progress."""

from collections.abc import Callable

from lrzip.core.layers import Layer

Progress = Callable[[str, Layer, int, int], None]
"""Callback before each layer, with the name of the phase, the layer, its index and the number of layers."""


def silent(phase: str, layer: Layer, index: int, count: int) -> None:
    """Show no progress."""
    del phase, layer, index, count

"""How long work tells what it is at."""

from collections.abc import Callable

from lrzip.core.layers import Layer

Progress = Callable[[str, Layer, int, int], None]
"""Called before each layer with what is being done, the layer, its index and the number of layers."""


def silent(phase: str, layer: Layer, index: int, count: int) -> None:
    """Show no progress."""
    del phase, layer, index, count

"""What the rows of a layer's unfolded weight are multiplied by: its inputs, one position a row, in bounded pieces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lrzip.core.kinds import Kind

_ITEMSIZE = 4


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input, along each axis; `padding` is (before, after) with a mode of F.pad."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[tuple[int, int]]
    dilation: Sequence[int]
    mode: str = "constant"

    @classmethod
    def of(cls, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, mode: str = "zeros") -> "Window":
        """Return the window of a convolution with the arguments that torch's operators take."""
        strides, dilations = _each(stride, kernel), _each(dilation, kernel)
        if padding == "same":  # torch puts the odd element after
            spans = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
            sides = [(span // 2, span - span // 2) for span in spans]
        else:
            sides = [(size, size) for size in _each(0 if padding == "valid" else padding, kernel)]
        return cls(tuple(kernel), strides, sides, dilations, "constant" if mode == "zeros" else mode)


@dataclass(frozen=True)
class Inputs:
    """What a layer is applied to in one call.

    Attributes:
        kind: Kind of the layer.
        parts: For each group of the weight what it sees, with channels last, or as axis 1 for convolutions; indices
            for an embedding.
        window: Of a convolution that is not transposed.
        step: Every how many lines of positions count.
        offset: The first of them.
    """

    kind: Kind
    parts: tuple[Tensor, ...]
    window: Window | None = None
    step: int = 1
    offset: int = 0

    def thinned(self, most: int, number: int) -> "Inputs":
        """Return about as many positions, evenly spread: of an image every few lines, beginning elsewhere each time.

        Args:
            most: Positions to keep.
            number: Of the call, which decides where to begin.
        """
        view = self._views()[0]
        axes = len(self.window.kernel) if self.window else 0
        step = min(max(prod(view.shape[: len(view.shape) - 1 - axes]) // most, 1), view.shape[1])
        return replace(self, step=step, offset=number % step)

    def rows(self, nbytes: int, outputs: tuple[Tensor, ...] = ()) -> Iterator[tuple[Tensor, ...]]:
        """Yield pieces: for each group a matrix (positions, columns of its part of the unfolded weight), float32.

        Args:
            nbytes: About what the matrix of a group may take. One line of positions is the least.
            outputs: What belongs to the positions, shaped as the layer puts it out; for each of them a matrix
                (positions, channels) follows.
        """
        axes = len(self.window.kernel) if self.window else 0
        beside = [value.movedim(1, -1) if axes else value.reshape(1, -1, value.shape[-1]) for value in outputs]
        views = [view[:, self.offset :: self.step] for view in (*self._views(), *beside)]
        first, count = views[0], len(self.parts)
        widths = [prod(view.shape[-1 - axes :]) if n < count else view.shape[-1] for n, view in enumerate(views)]
        lines, most = first.shape[1], max(nbytes // (_ITEMSIZE * first[:1, :1].numel()), 1)
        for batch in zip(*(torch.split(view, max(most // lines, 1)) for view in views), strict=True):
            for piece in zip(*(torch.split(part, min(most, lines), 1) for part in batch), strict=True):
                yield tuple(part.reshape(-1, width).float() for part, width in zip(piece, widths, strict=True))

    def _views(self) -> list[Tensor]:
        """Return for each group (examples, *positions, channels, *kernel)."""
        if self.window:
            return [_patches(part, self.window) for part in self.parts]
        if self.kind.is_transposed_convolution:
            return [part.movedim(1, -1).flatten(1, -2) for part in self.parts]
        return [part.reshape(1, -1, part.shape[-1]) for part in self.parts]


def _patches(x: Tensor, window: Window) -> Tensor:
    """Return (examples, *positions, channels, *kernel), a view: only pieces of it are ever copied."""
    sides = [side for pair in reversed(window.padding) for side in pair]
    padded = F.pad(x, sides, mode=window.mode) if any(sides) else x
    for axis, (size, step, gap) in enumerate(zip(window.kernel, window.stride, window.dilation, strict=True), 2):
        padded = padded.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    return padded.movedim(1, 1 + len(window.kernel))


def _each(value: Any, like: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, Sequence) else (value,)
    return sizes * len(like) if len(sizes) == 1 else sizes

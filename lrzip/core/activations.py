"""Inputs of a layer, unfolded (im2col) into the rows that the unfolded weight multiplies, in pieces of bounded size."""

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
    """The geometry of a convolution, for each spatial axis.

    Attributes:
        kernel: Kernel size.
        stride: Stride.
        padding: Padding (before, after).
        dilation: Dilation.
        mode: Padding mode of `torch.nn.functional.pad`.
    """

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[tuple[int, int]]
    dilation: Sequence[int]
    mode: str = "constant"

    @classmethod
    def of(cls, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, mode: str = "zeros") -> "Window":
        """Return the window of a convolution from the arguments of torch's convolution modules and operators."""
        strides, dilations = _each(stride, kernel), _each(dilation, kernel)
        if padding == "same":  # torch pads an odd total with the larger part at the end
            spans = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
            sides = [(span // 2, span - span // 2) for span in spans]
        else:
            sides = [(size, size) for size in _each(0 if padding == "valid" else padding, kernel)]
        return cls(tuple(kernel), strides, sides, dilations, "constant" if mode == "zeros" else mode)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a layer in one call.

    Attributes:
        kind: Kind of the layer.
        parts: Input of each group of the weight; channels are the last axis, or axis 1 for convolutions. Indices for
            an embedding.
        window: Geometry of a convolution that is not transposed.
        step: Stride at which inputs are sampled along the first axis of positions.
        offset: First sampled index along that axis.
    """

    kind: Kind
    parts: tuple[Tensor, ...]
    window: Window | None = None
    step: int = 1
    offset: int = 0

    def masked(self, mask: Tensor | None) -> "Inputs":
        """Return the inputs at the positions that a mask (samples, positions) keeps.

        Inputs of a layer that are not one vector, or one index, for each position are returned unchanged.
        """
        axes = 2 if self.kind.is_indexed else 3
        fits = mask is not None and all(part.ndim == axes and part.shape[:2] == mask.shape for part in self.parts)
        if mask is None or self.kind.spatial or not fits:
            return self
        return replace(self, parts=tuple(part[mask] for part in self.parts))

    def subsampled(self, most: int, number: int) -> "Inputs":
        """Return a regular sample of the inputs along the first axis of positions; its offset varies with the call.

        Args:
            most: Approximate number of spatial positions to keep.
            number: Number of the call, which determines the offset.
        """
        view = self._views()[0]
        axes = len(self.window.kernel) if self.window else 0
        step = min(max(prod(view.shape[: len(view.shape) - 1 - axes]) // most, 1), view.shape[1])
        return replace(self, step=step, offset=number % step)

    def rows(self, nbytes: int, outputs: tuple[Tensor, ...] = ()) -> Iterator[tuple[Tensor, ...]]:
        """Yield pieces of the unfolded inputs: a float32 matrix (positions, columns of the unfolded weight) per group.

        Args:
            nbytes: Approximate maximum size of a matrix in bytes. A piece has at least one index along the
                first axis of positions.
            outputs: Tensors shaped like the outputs of the layer; each adds one matrix (positions, channels) per piece.
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
        """Return for each group a view (samples, *positions, channels, *kernel)."""
        if self.window:
            return [_patches(part, self.window) for part in self.parts]
        if self.kind.is_transposed_convolution:
            return [part.movedim(1, -1).flatten(1, -2) for part in self.parts]
        return [part.reshape(1, -1, part.shape[-1]) for part in self.parts]


def _patches(x: Tensor, window: Window) -> Tensor:
    """Return a view (samples, *positions, channels, *kernel), of which only pieces are ever copied."""
    sides = [side for pair in reversed(window.padding) for side in pair]
    padded = F.pad(x, sides, mode=window.mode) if any(sides) else x
    for axis, (size, step, gap) in enumerate(zip(window.kernel, window.stride, window.dilation, strict=True), 2):
        padded = padded.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    return padded.movedim(1, 1 + len(window.kernel))


def _each(value: Any, like: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, Sequence) else (value,)
    return sizes * len(like) if len(sizes) == 1 else sizes

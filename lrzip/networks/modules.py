"""Modules for structures that chains of ordinary modules cannot express."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Sum(nn.Module):
    """Apply several modules to the same input and add their outputs.

    Args:
        branches: The modules; their tensors are called `branches.0.weight`, `branches.1.weight`, ….
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the outputs."""
        first, *others = self.branches
        total: Tensor = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class Select(nn.Module):
    """Keep some channels of the input.

    Args:
        count: Number of channels to keep. The buffer `index` (count,) int64 holds their indices.
        axis: Axis of the channels.
    """

    index: Tensor

    def __init__(self, count: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", torch.arange(count))

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels that are kept, in the order of `index`."""
        return x.index_select(self.axis, self.index)


class Reshape(nn.Module):
    """Reshape the last axes of the input, permute them, and reshape them again.

    Args:
        axes: Number of last axes that are rearranged.
        view: Sizes after the first reshaping.
        order: Permutation of these axes.
        shape: Sizes after the second reshaping.
        bias: Whether a bias is added to the last axis of the result.
    """

    bias: nn.Parameter | None

    def __init__(
        self, axes: int, view: Sequence[int], order: Sequence[int], shape: Sequence[int], *, bias: bool = False
    ) -> None:
        super().__init__()
        self.axes, self.view, self.order, self.shape = axes, tuple(view), tuple(order), tuple(shape)
        self.register_parameter("bias", nn.Parameter(torch.zeros(shape[-1])) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rearranged input; leading axes are unchanged."""
        leading = x.shape[: x.dim() - self.axes]
        moved = x.reshape(*leading, *self.view).permute(
            *range(len(leading)), *(len(leading) + axis for axis in self.order)
        )
        result = moved.reshape(*leading, *self.shape)
        return result if self.bias is None else result + self.bias

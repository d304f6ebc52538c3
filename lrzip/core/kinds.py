"""Kinds of layers: which axes of a weight are outputs, inputs and kernel.

Code queries the properties of a `Kind` and never compares names of kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """The layout of a layer's weight.

    Attributes:
        name: Name in plans, reports and JSON documents, such as `conv2d`.
        spatial: Number of spatial axes; the kernel has the last `spatial` axes of the weight.
        inputs_first: Whether the weight is stored (in, out, *kernel) instead of (out, in / groups, *kernel).
        is_indexed: Whether the inputs are indices of rows of the weight.
        groups: Number of parts, stacked along the first axis of the weight, in every layer of the kind.
    """

    name: str
    spatial: int = 0
    inputs_first: bool = False
    is_indexed: bool = False
    groups: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def is_convolution(self) -> bool:
        """Whether the layer slides a kernel over spatial axes, transposed or not."""
        return self.spatial > 0

    @property
    def is_transposed_convolution(self) -> bool:
        """Whether the layer is the adjoint of a convolution (`nn.ConvTranspose2d` and the like)."""
        return self.spatial > 0 and self.inputs_first

    @property
    def is_plain_convolution(self) -> bool:
        """Whether the layer is a convolution that is not transposed."""
        return self.spatial > 0 and not self.inputs_first

    @property
    def is_regression(self) -> bool:
        """Whether the outputs at each position are the product of the unfolded weight with a vector of inputs.

        This does not hold for embeddings, whose inputs are indices, nor for transposed convolutions, whose outputs
        overlap.
        """
        return not self.is_indexed and not self.is_transposed_convolution

    @property
    def is_stored_transposed(self) -> bool:
        """Whether the layer is a linear one whose weight is stored (in, out), as transformers' Conv1D stores it."""
        return self.inputs_first and not self.spatial and not self.is_indexed

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in the layer's output: 1 for convolutions, else the last one."""
        return 1 if self.spatial else -1

    @property
    def pointwise(self) -> "Kind":
        """The kind that only mixes channels, with as many spatial axes: 1×1 convolution, or linear for none."""
        return CONVOLUTIONS[self.spatial] if self.spatial else LINEAR

    def kernel(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the kernel sizes of a weight of that shape."""
        return shape[len(shape) - self.spatial :]

    def channels(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the numbers of outputs and of inputs per group of a weight of that shape."""
        first, second = shape[:2]
        return (second, first) if self.inputs_first else (first, second)

    def shape(self, outputs: int, inputs: int, kernel: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the shape of a weight with given numbers of outputs and of inputs per group."""
        return (inputs, outputs, *kernel) if self.inputs_first else (outputs, inputs, *kernel)

    def outputs_first(self, weight: Tensor) -> Tensor:
        """Return a view of a weight as (out, in / groups, *kernel); a second call restores the layout of the kind."""
        return weight.transpose(0, 1) if self.inputs_first else weight

    def unfold(self, weight: Tensor, groups: int) -> Tensor:
        """Return the matrices of all groups (groups, outputs, columns) that inputs are multiplied by.

        Args:
            weight: Weight of a layer whose kind `is_regression`.
            groups: Groups of the layer.
        """
        return torch.stack(self.outputs_first(weight).flatten(1).chunk(groups))

    def fold(self, matrices: Tensor, like: Tensor) -> Tensor:
        """Undo `unfold`: return (groups, outputs, columns) as a weight with the shape and dtype of `like`."""
        matrix = matrices.flatten(0, 1)
        return (matrix.mT if self.inputs_first else matrix.reshape(like.shape)).to(like.dtype)

    def tensor_name(self, module: str, leaf: str) -> str:
        """Return the name of the `weight` or `bias` of a module of this kind in a state_dict.

        The input projection `x.in_proj` of nn.MultiheadAttention is not a module; its weight is `x.in_proj_weight`.
        """
        return f"{module}{'_' if self is ATTENTION else '.'}{leaf}" if module else leaf


LINEAR = Kind("linear")
LINEAR_TRANSPOSED = Kind("linear_transposed", inputs_first=True)
EMBEDDING = Kind("embedding", inputs_first=True, is_indexed=True)
ATTENTION = Kind("attention", groups=3)
"""The input projections of nn.MultiheadAttention for query, key and value, in one weight (3 · width, width)."""
CONVOLUTIONS: Mapping[int, Kind] = MappingProxyType({n: Kind(f"conv{n}d", spatial=n) for n in (1, 2, 3)})
"""Kinds of convolutions by number of spatial axes."""
TRANSPOSED_CONVOLUTIONS: Mapping[int, Kind] = MappingProxyType(
    {n: Kind(f"conv_transpose{n}d", spatial=n, inputs_first=True) for n in (1, 2, 3)}
)
"""Kinds of transposed convolutions by number of spatial axes."""
LORA = Kind("lora")
"""The product of the two matrices of an adapter, stored as a `lrzip.core.layers.Pair`."""
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            LINEAR,
            LINEAR_TRANSPOSED,
            EMBEDDING,
            *CONVOLUTIONS.values(),
            *TRANSPOSED_CONVOLUTIONS.values(),
            ATTENTION,
            LORA,
        )
    }
)
"""All kinds by name."""


def kind_of_shape(shape: tuple[int, ...]) -> Kind | None:
    """Return the kind of a weight by its number of axes alone: linear layer or convolution; None for others."""
    return LINEAR if len(shape) == 2 else CONVOLUTIONS.get(len(shape) - 2)

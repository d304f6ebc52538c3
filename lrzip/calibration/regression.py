"""What a layer should do by the moments of what it gets and of what it should make of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrzip.core.layers import Layer
from lrzip.core.moments import Moments, Targets
from lrzip.linalg.whitening import regress


@dataclass(frozen=True)
class Affine:
    """What a layer does, and perhaps a batch norm after it: Wx + c, for each group.

    Attributes:
        matrices: W, (groups, m, n) float64.
        constants: c, (groups, m) float64.
    """

    matrices: Tensor
    constants: Tensor

    def then(self, scale: Tensor, shift: Tensor) -> "Affine":
        """Return the same followed by another for each output, both (groups, m)."""
        return Affine(scale[..., None] * self.matrices, scale * self.constants + shift)


@dataclass(frozen=True)
class Regression:
    """Finds weights by moments of what a layer gets.

    Attributes:
        inputs: Their moments.
        prior: The dense layer, to which it is drawn, and whose constants it keeps.
        free: Whether constants may be chosen. Otherwise a mean that is missed counts as an error like any other.
    """

    inputs: Moments
    prior: Affine
    free: bool

    @property
    def about(self) -> Moments:
        """The moments by which weights are measured."""
        return self.inputs.centered if self.free else self.inputs

    def matrices(self, targets: Targets) -> Tensor:
        """Return the weights that come nearest to targets, (groups, m, n) float64."""
        constants = targets.first if self.free else self.prior.constants
        cross = targets.less(constants, self.inputs).cross
        groups = zip(cross, self.about.second, self.prior.matrices, strict=True)
        return torch.stack([regress(*each, self.inputs.damping) for each in groups])

    def completed(self, matrices: Tensor, targets: Targets) -> Affine:
        """Return weights with the constants that go with them."""
        means = torch.einsum("gmn,gn->gm", matrices, self.inputs.first)
        return Affine(matrices, targets.first - means if self.free else self.prior.constants)


def unfolded(layer: Layer, weight: Tensor) -> Tensor:
    """Return the weight of a layer as (groups, outputs, columns)."""
    matrix = weight.mT if layer.kind == "linear_transposed" else weight.flatten(1)
    return torch.stack(matrix.chunk(layer.groups))


def folded(layer: Layer, matrices: Tensor, like: Tensor) -> Tensor:
    """Return the weight (groups, outputs, columns) as a layer has it, in the shape and the dtype of another."""
    matrix = matrices.flatten(0, 1)
    return (matrix.mT if layer.kind == "linear_transposed" else matrix.reshape(like.shape)).to(like.dtype)

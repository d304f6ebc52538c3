"""Regression of a layer's weight and bias on the moments of its inputs and targets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrzip.core.moments import Moments, Targets
from lrzip.linalg.whitening import regress


@dataclass(frozen=True)
class Affine:
    """An affine map Wx + c for each group: that of a layer, perhaps followed by a batch norm.

    Attributes:
        matrices: W, (groups, m, n) float64.
        constants: c, (groups, m) float64.
    """

    matrices: Tensor
    constants: Tensor

    def then(self, scale: Tensor, shift: Tensor) -> "Affine":
        """Return the map followed by a scale and a shift of each output, both (groups, m)."""
        return Affine(scale[..., None] * self.matrices, scale * self.constants + shift)


@dataclass(frozen=True)
class Regression:
    """Ridge regression of an affine map, regularized towards the dense layer.

    Attributes:
        inputs: Moments of the inputs.
        prior: The dense layer, towards which the weight is regularized. Its constants are kept unless `free`.
        free: Whether constants are fitted too. Otherwise errors of the mean are minimized along with all others.
    """

    inputs: Moments
    prior: Affine
    free: bool

    @property
    def about(self) -> Moments:
        """The moments by which errors of the weight are weighted: centered if constants are free."""
        return self.inputs.centered if self.free else self.inputs

    def matrices(self, targets: Targets) -> Tensor:
        """Return the weights with the least regularized error, (groups, m, n) float64."""
        constants = targets.first if self.free else self.prior.constants
        cross = targets.minus(constants, self.inputs).cross
        groups = zip(cross, self.about.second, self.prior.matrices, strict=True)
        return torch.stack([regress(*each, self.inputs.damping) for each in groups])

    def completed(self, matrices: Tensor, targets: Targets) -> Affine:
        """Return weights (groups, m, n) together with their best constants, or those of the prior."""
        means = torch.einsum("gmn,gn->gm", matrices, self.inputs.first)
        return Affine(matrices, targets.first - means if self.free else self.prior.constants)

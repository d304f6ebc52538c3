"""Two stages with a kernel along one axis each: k×1 to `rank` channels and 1×k, or the other way round.

The truncated SVD of the unfolding (in · height) × (out · width) is W ≈ UΣVᵀ = (U√Σ)(√ΣVᵀ), and its halves are the
vertical and the horizontal filters (Tai et al. 2016, 'Convolutional neural networks with low-rank regularization',
theorem 1; scheme 2 of Jaderberg et al. 2014). Each position costs d · rank · (in + out) multiply-accumulates for a d×d
kernel, which is less than d² · in · out for ranks below d · in · out / (in + out). Stride, padding and dilation go to
the axis that they belong to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Stage
from lrzip.decompositions.chains import (
    balanced_pair,
    refusal_of_separable,
    spectrum_of,
    stored_factors,
    with_excess,
    with_output_error,
)
from lrzip.decompositions.outputs import damped_moment, fit_outputs, output_energy
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver, singular_values, truncated_svd
from lrzip.linalg.whitening import Whitening


@dataclass(frozen=True)
class Spatial:
    """Separable filters along the two spatial axes of a 2-D convolution.

    Attributes:
        solver: Solver of the truncated SVD.
        first: Spatial axis of the first stage: 0 for k×1, 1 for 1×k.
    """

    solver: Solver
    first: int

    def refuse(self, layer: Layer) -> str | None:
        """Refuse all layers except ungrouped, untransposed 2-D convolutions whose kernel extends along both axes."""
        return refusal_of_separable(layer)

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the smaller side of the unfolding."""
        return (min(self._unfolded_shape(layer)),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the spectrum of the unfolding, exact to the precision of the weight's dtype.

        With moments, it is that of the outputs, if inputs at different positions along the second axis are uncorrelated
        and identically distributed, scaled to the energy of the outputs.
        """
        matrix, shape = self._unfold(weight), self._unfolded_shape(layer)
        if moments is None:
            return (spectrum_of(singular_values(matrix), shape, weight),)
        second = damped_moment(moments)
        whitened = self._whitening(layer, second).apply(matrix.mT.double().cpu())
        return (spectrum_of(singular_values(whitened), shape, weight, output_energy(weight, second)),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return no subspaces."""
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        """Return the two stages: (rank, in, k, 1) and (out, rank, 1, k), or (rank, in, 1, k) and (out, rank, k, 1)."""
        outputs, inputs, *kernel = layer.weight.shape
        (rank,) = ranks
        own = tuple(axis == self.first for axis in range(2))
        others = tuple(not mine for mine in own)
        return Chain(
            (
                Stage(layer.kind, (rank, inputs, *_along(kernel, own)), axes=own),
                Stage(layer.kind, (outputs, rank, *_along(kernel, others)), axes=others),
            )
        )

    def factorize(
        self,
        layer: Layer,
        weight: Tensor,
        ranks: tuple[int, ...],
        *,
        dtype: torch.dtype,
        generator: Generator,
        subspaces: Sequence[Subspace] = (),
        moments: Moments | None = None,
    ) -> Factors:
        """Return the two stages, with the singular values split as square roots over both.

        With moments, alternating least squares minimizes the error of the outputs from the SVD of the outputs under the
        assumption of `spectra`.
        """
        del subspaces
        (rank,) = ranks
        structure, matrix = self.blueprint(layer, ranks), self._unfold(weight)
        if moments is None:
            found = truncated_svd(matrix, rank, solver=self.solver, generator=generator)
            root = found.s.sqrt()
            factors = self._stages(layer, found.u * root, root[:, None] * found.vh)
            made = stored_factors(layer, weight, structure, factors, dtype, method=found.method)
            return with_excess(made, weight, found.excess, found.least)
        second = damped_moment(moments)
        whitening = self._whitening(layer, second)
        columns = matrix.mT.double().cpu()
        found = truncated_svd(whitening.apply(columns), rank, solver=self.solver, generator=generator)
        start = self._stages(layer, whitening.undo(found.s[:, None] * found.vh).mT, found.u.mT)
        fitted = fit_outputs(structure, start, weight, layer.stage, second)
        method = "alternating-least-squares"
        made = stored_factors(layer, weight, structure, balanced_pair(*fitted), dtype, method=method)
        return with_output_error(made, layer, weight, moments)

    def _unfolded_shape(self, layer: Layer) -> tuple[int, int]:
        outputs, inputs, *kernel = layer.weight.shape
        return inputs * kernel[self.first], outputs * kernel[1 - self.first]

    def _unfold(self, weight: Tensor) -> Tensor:
        """Return the unfolding: rows are input channels and the first axis, columns output channels and the other."""
        return weight.movedim((1, 2 + self.first), (0, 1)).flatten(2).flatten(0, 1)

    def _stages(self, layer: Layer, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of both stages from the factors (in · k, rank) and (rank, out · k) of the unfolding."""
        first, second = self.blueprint(layer, (left.shape[1],)).parts
        assert isinstance(first, Stage)
        assert isinstance(second, Stage)
        horizontal = right.reshape(left.shape[1], second.shape[0], -1).transpose(0, 1)
        return left.mT.reshape(first.shape), horizontal.reshape(second.shape)

    def _whitening(self, layer: Layer, second: Tensor) -> Whitening:
        """Return the whitening of the rows of the unfolding: the moment of inputs, summed over the other axis."""
        _, inputs, *kernel = layer.weight.shape
        moment = second.reshape(inputs, *kernel, inputs, *kernel)
        other = 2 - self.first  # the axis that is summed over, after the channels
        summed = moment.diagonal(dim1=other, dim2=3 + other).sum(-1)
        return Whitening.of(summed.flatten(2).flatten(0, 1))


def vertical_first(solver: Solver) -> Spatial:
    """Return the decomposition into k×1 and 1×k."""
    return Spatial(solver, 0)


def horizontal_first(solver: Solver) -> Spatial:
    """Return the decomposition into 1×k and k×1."""
    return Spatial(solver, 1)


def _along(kernel: Sequence[int], axes: Sequence[bool]) -> tuple[int, ...]:
    return tuple(size if mine else 1 for size, mine in zip(kernel, axes, strict=True))

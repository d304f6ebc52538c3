"""A basis of filters: the same `rank` filters for all input channels, and a 1×1 convolution that mixes the results.

W[o, i, :] ≈ Σ_s A[o, i, s] f_s, the truncated SVD of the matricization (out · in) × (kernel) of Sharma, Heard, Saber &
Markopoulos (2025, 'Convolutional neural network compression via dynamic parameter rank pruning', equations 1 to 4). A
depthwise convolution holds the filters, once for each input channel, so that ordinary layers compute it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain
from lrzip.decompositions.chains import (
    depthwise_chain,
    refusal_of_convolution,
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
class FilterBasis:
    """Filters that all pairs of channels share. The rank is their number.

    Attributes:
        solver: Solver of the truncated SVD.
    """

    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        """Refuse all layers except ungrouped, untransposed convolutions with a kernel larger than 1×1."""
        return refusal_of_convolution(layer)

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the smaller side of the matricization, which is usually the number of elements of the kernel."""
        return (min(_shape(layer)),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the spectrum of the matricization, exact to the precision of the weight's dtype.

        With moments, it is that of the outputs, if input channels are uncorrelated and identically distributed, scaled
        to the energy of the outputs.
        """
        matrix = _unfold(weight)
        if moments is None:
            return (spectrum_of(singular_values(matrix), _shape(layer), weight),)
        second = damped_moment(moments)
        whitened = _whitening(layer, second).apply(matrix.double().cpu())
        return (spectrum_of(singular_values(whitened), _shape(layer), weight, output_energy(weight, second)),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return no subspaces."""
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        """Return the two stages: (in · rank, 1, k, k) in `in` groups, and (out, in · rank, 1, 1)."""
        return depthwise_chain(layer, ranks[0])

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
        """Return the two stages, with equal norms.

        With moments, the filters are those of the outputs under the assumption of `spectra`, and the 1×1 convolution
        minimizes the error of the outputs for them.
        """
        del subspaces
        (rank,) = ranks
        structure, matrix = self.blueprint(layer, ranks), _unfold(weight)
        if moments is None:
            found = truncated_svd(matrix, rank, solver=self.solver, generator=generator)
            factors = _stages(layer, found.u * found.s, found.vh)
            made = stored_factors(layer, weight, structure, factors, dtype, method=found.method)
            return with_excess(made, weight, found.excess, found.least)
        second = damped_moment(moments)
        whitening = _whitening(layer, second)
        whitened = whitening.apply(matrix.double().cpu())
        found = truncated_svd(whitened, rank, solver=self.solver, generator=generator)
        start = _stages(layer, found.u * found.s, whitening.undo(found.vh))
        fitted = fit_outputs(structure, start, weight, layer.stage, second, free=(1,))
        made = stored_factors(layer, weight, structure, fitted, dtype, method="least-squares")
        return with_output_error(made, layer, weight, moments)


def _shape(layer: Layer) -> tuple[int, int]:
    outputs, inputs, *kernel = layer.weight.shape
    return outputs * inputs, prod(kernel)


def _unfold(weight: Tensor) -> Tensor:
    """Return the matricization (out · in, kernel)."""
    return weight.flatten(2).flatten(0, 1)


def _whitening(layer: Layer, second: Tensor) -> Whitening:
    """Return the whitening of the elements of the kernel: their moment, summed over input channels."""
    inputs = layer.weight.shape[1]
    blocks = second.reshape(inputs, -1, inputs, len(second) // inputs)
    return Whitening.of(blocks.diagonal(dim1=0, dim2=2).sum(-1))


def _stages(layer: Layer, mixing: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of both stages, scaled to equal norms.

    Args:
        layer: The layer.
        mixing: Coefficients of the filters for each pair of channels (out · in, rank).
        filters: Filters (rank, kernel).
    """
    inputs = layer.weight.shape[1]
    repeated = filters.repeat(inputs, 1)
    norms = float(repeated.norm()), float(mixing.norm())
    scale = (norms[1] / norms[0]) ** 0.5 if norms[0] and norms[1] else 1.0
    return repeated * scale, mixing / scale

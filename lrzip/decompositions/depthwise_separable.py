"""A depthwise-separable convolution: `rank` filters for each input channel, and a 1×1 convolution that mixes them.

W[o, i, :] ≈ Σ_s P[o, i, s] D[i, s, :]. Channels do not interact, so the best filters of a channel are the leading right
singular vectors of its matrix (out) × (kernel), by the theorem of Eckart & Young (1936). The rank is the multiplier of
the depthwise convolution; 1 gives the layer of Howard et al. (2017, 'MobileNets').
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
    balanced_pair,
    depthwise_chain,
    refusal_of_convolution,
    spectrum_of,
    stored_factors,
    with_excess,
    with_output_error,
)
from lrzip.decompositions.outputs import damped_moment, fit_outputs, output_energy
from lrzip.linalg.blocks.certificate import interlacing_bound
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver


@dataclass(frozen=True)
class DepthwiseSeparable:
    """Filters of each input channel. The rank is their number.

    Attributes:
        solver: Solver of truncated SVDs; not used, since all matrices are small.
    """

    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        """Refuse all layers except ungrouped, untransposed convolutions with a kernel larger than 1×1."""
        return refusal_of_convolution(layer)

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the smaller side of the matrix of one channel."""
        return (min(_shape(layer)),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the spectrum of all channels together: the roots of the sums of squares over their i-th values.

        It is exact to the precision of the weight's dtype. With moments, it is that of the outputs, if input channels
        are uncorrelated, scaled to the energy of the outputs.
        """
        matrices = _matrices(weight)
        if moments is None:
            return (spectrum_of(torch.linalg.svdvals(matrices), _shape(layer), weight),)
        second = damped_moment(moments)
        values = torch.linalg.svdvals(matrices.cpu() @ _roots(layer, second))
        return (spectrum_of(values, _shape(layer), weight, output_energy(weight, second)),)

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
        """Return the two stages, with the singular values of each channel split as square roots over both.

        With moments, alternating least squares minimizes the error of the outputs from there.
        """
        del generator, subspaces
        (rank,) = ranks
        structure = self.blueprint(layer, ranks)
        u, s, vh = torch.linalg.svd(_matrices(weight), full_matrices=False)
        root = s[:, :rank].sqrt()
        filters = (root[:, :, None] * vh[:, :rank]).flatten(0, 1)
        mixing = (u[:, :, :rank] * root[:, None]).transpose(0, 1).flatten(1)
        if moments is None:
            made = stored_factors(layer, weight, structure, (filters, mixing), dtype, method="exact")
            return with_excess(made, weight, 0.0, interlacing_bound(s.square().sum(0).sqrt(), rank))
        second = damped_moment(moments)
        fitted = fit_outputs(structure, (filters, mixing), weight, layer.stage, second)
        method = "alternating-least-squares"
        made = stored_factors(layer, weight, structure, balanced_pair(*fitted), dtype, method=method)
        return with_output_error(made, layer, weight, moments)


def _shape(layer: Layer) -> tuple[int, int]:
    outputs, _, *kernel = layer.weight.shape
    return outputs, prod(kernel)


def _matrices(weight: Tensor) -> Tensor:
    """Return the matrices of all input channels (in, out, kernel), in float64."""
    return weight.double().flatten(2).transpose(0, 1)


def _roots(layer: Layer, second: Tensor) -> Tensor:
    """Return a root of the moment of the inputs of each channel (in, kernel, kernel)."""
    inputs = layer.weight.shape[1]
    blocks = second.reshape(inputs, -1, inputs, len(second) // inputs).diagonal(dim1=0, dim2=2)
    roots: Tensor = torch.linalg.cholesky(blocks.movedim(-1, 0))
    return roots

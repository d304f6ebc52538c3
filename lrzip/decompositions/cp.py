"""Four stages by a canonical polyadic decomposition: 1×1 to `rank` channels, depthwise k×1 and 1×k, and 1×1 back.

The weight is a sum of `rank` products of one vector along each of its axes (Lebedev et al. 2015, 'Speeding-up
convolutional neural networks using fine-tuned CP-decomposition', section 3.1). Each position costs
rank · (in + k + k + out) multiply-accumulates. Stride, padding and dilation go to the axis that they belong to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Stage
from lrzip.decompositions.chains import refusal_of_separable, spectrum_of, stored_factors, with_output_error
from lrzip.decompositions.outputs import damped_moment, fit_outputs, output_energy
from lrzip.linalg.blocks.rank_one_terms import equalized
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.cp import OrthogonalTerms, cp
from lrzip.linalg.svd import Solver
from lrzip.linalg.weighted_tucker import channel_moment
from lrzip.linalg.whitening import Whitening


@dataclass(frozen=True)
class CP:
    """Canonical polyadic decomposition of 2-D convolutions.

    Attributes:
        solver: Solver of truncated SVDs; not used.
    """

    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        """Refuse all layers except ungrouped, untransposed 2-D convolutions whose kernel extends along both axes."""
        return refusal_of_separable(layer)

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return a rank that reproduces every weight: the smaller number of channels for each element of the kernel."""
        outputs, inputs, high, wide = layer.weight.shape
        return (high * wide * min(outputs, inputs),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the norms of mutually orthogonal products of vectors along the axes, whose sum is the weight.

        The errors of the best factors are not known. The tails of these norms bound them from above, and are met where
        nothing is left. They bound operator norms of errors, too. With moments, they are norms of the outputs if inputs
        at different positions of the kernel are uncorrelated and identically distributed, scaled to the energy of the
        outputs.
        """
        outputs, inputs, high, wide = layer.weight.shape
        shape = high * wide * outputs, high * wide * inputs
        if moments is None:
            return (_bounding(spectrum_of(OrthogonalTerms(weight.double()).norms, shape, weight)),)
        second = damped_moment(moments)
        whitened = _applied(_whitening(layer, second), weight.double().cpu())
        norms = OrthogonalTerms(whitened).norms
        return (_bounding(spectrum_of(norms, shape, weight, output_energy(weight, second))),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return no subspaces."""
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        """Return the four stages: (rank, in, 1, 1), (rank, 1, k, 1), (rank, 1, 1, k) and (out, rank, 1, 1)."""
        outputs, inputs, high, wide = layer.weight.shape
        (rank,) = ranks
        fixed = False, False
        return Chain(
            (
                Stage(layer.kind, (rank, inputs, 1, 1), axes=fixed),
                Stage(layer.kind, (rank, 1, high, 1), rank, (True, False)),
                Stage(layer.kind, (rank, 1, 1, wide), rank, (False, True)),
                Stage(layer.kind, (outputs, rank, 1, 1), axes=fixed),
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
        """Return the four stages, with equal norms for each channel between them.

        With moments, alternating least squares minimizes the error of the outputs, from the decomposition of the
        outputs under the assumption of `spectra`.
        """
        del subspaces, generator  # which depends on the layer's name, while factors of equal weights are to be equal
        starts = Generator().manual_seed(0)
        (rank,) = ranks
        structure = self.blueprint(layer, ranks)
        if moments is None:
            outer, inner, high, wide = cp(weight, rank, generator=starts)
            parts = inner.mT, high.mT, wide.mT, outer
            return stored_factors(layer, weight, structure, parts, dtype, method="error-preserving-correction")
        second = damped_moment(moments)
        whitening = _whitening(layer, second)
        outer, inner, high, wide = cp(_applied(whitening, weight.double().cpu()), rank, generator=starts)
        start = equalized([whitening.undo(inner.mT).mT, high, wide, outer])
        start = [*(factor.mT for factor in start[:-1]), start[-1]]
        fitted = fit_outputs(structure, start, weight, layer.stage, second)
        balanced = equalized([*(factor.flatten(1).mT for factor in fitted[:-1]), fitted[-1].flatten(1)])
        stages = [*(factor.mT for factor in balanced[:-1]), balanced[-1]]
        made = stored_factors(layer, weight, structure, stages, dtype, method="alternating-least-squares")
        return with_output_error(made, layer, weight, moments)


def _bounding(spectrum: Spectrum) -> Spectrum:
    """Return a spectrum whose operator norms of errors are Frobenius norms, which are never below them."""
    return replace(spectrum, peaks=torch.cat([spectrum.values[:1], spectrum.squared_tails[:-1].sqrt()]))


def _whitening(layer: Layer, second: Tensor) -> Whitening:
    """Return the whitening of input channels, summed over positions of the kernel."""
    return Whitening.of(channel_moment(second, layer.weight.shape[1]))


def _applied(whitening: Whitening, weight: Tensor) -> Tensor:
    """Return a weight for whitened input channels."""
    return whitening.apply(weight.movedim(1, -1)).movedim(-1, 1)

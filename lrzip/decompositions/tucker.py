"""Three stages by Tucker-2: a 1×1 convolution to fewer channels, a k×k convolution between these, and a 1×1 one back.

Input and output channels of a k×k convolution get a rank each; the middle stage keeps kernel size, stride, padding and
dilation (Kim et al. 2016, 'Compression of deep convolutional neural networks for fast and low power mobile
applications', section 3.1). Pointwise convolutions are refused: a truncated SVD replaces them by one stage less.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Stage
from lrzip.decompositions.chains import refusal_of_convolution, stored_factors, with_output_error
from lrzip.decompositions.outputs import damped_moment
from lrzip.linalg.blocks.certificate import interlacing_bound, stored_excess
from lrzip.linalg.blocks.gram import gram
from lrzip.linalg.blocks.precision import attainable, compute_dtype
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver, singular_values
from lrzip.linalg.tucker import balanced, tucker2
from lrzip.linalg.weighted_tucker import channel_moment, weighted_tucker2


@dataclass(frozen=True)
class Tucker:
    """Tucker-2 of convolutions with a kernel. Its ranks are those of output and input channels, in this order.

    Attributes:
        solver: Solver of truncated SVDs; not used.
    """

    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        """Refuse all layers except ungrouped, untransposed convolutions with a kernel larger than 1×1."""
        return refusal_of_convolution(layer)

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the smaller sides of the unfoldings along output and input channels."""
        out, inner, *kernel = layer.weight.shape
        size = prod(kernel)
        return min(out, inner * size), min(inner, out * size)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the spectra along output and input channels, exact to the precision of the weight's dtype.

        With moments, they are spectra of the outputs. The one along output channels is exact. The one along input
        channels treats inputs at different positions of the kernel as uncorrelated and identically distributed, and is
        scaled to the same energy.
        """
        del layer
        unfoldings = _unfoldings(weight)
        if moments is None:
            values = [singular_values(unfolding).cpu() for unfolding in unfoldings]
        else:
            values = _output_values(weight, moments)
        eps = torch.finfo(compute_dtype(weight.dtype)).eps
        return tuple(
            Spectrum(found, (unfolding.shape[0], unfolding.shape[1]), eps)
            for found, unfolding in zip(values, unfoldings, strict=True)
        )

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return no subspaces: the basis along each mode depends on the rank along the other."""
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        """Return the three stages: (in rank, in, 1, 1), (out rank, in rank, k, k) and (out, out rank, 1, 1)."""
        out, inner, *kernel = layer.weight.shape
        outer_rank, inner_rank = ranks
        pointwise, fixed = (1,) * len(kernel), (False,) * len(kernel)
        return Chain(
            (
                Stage(layer.kind, (inner_rank, inner, *pointwise), 1, fixed),
                Stage(layer.kind, (outer_rank, inner_rank, *kernel), 1, layer.stage.axes),
                Stage(layer.kind, (out, outer_rank, *pointwise), 1, fixed),
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
        """Return the three stages, with equal norms.

        Unlike those of a matrix, the best factors are not known. Their error is at least the tail of either spectrum;
        without moments, this bounds the excess error of the factors returned.
        """
        del generator, subspaces
        outer_rank, inner_rank = ranks
        tensor = weight.flatten(2)
        if moments is None:
            found = balanced(tucker2(tensor, (outer_rank, inner_rank)))
        else:
            found = balanced(weighted_tucker2(tensor, damped_moment(moments), (outer_rank, inner_rank)))
        parts, structure = (found.inner.mT, found.core, found.outer), self.blueprint(layer, ranks)
        if moments is not None:
            made = stored_factors(layer, weight, structure, parts, dtype, method="alternating-least-squares")
            return with_output_error(made, layer, weight, moments)
        made = stored_factors(layer, weight, structure, parts, dtype, method="orthogonal-iteration")
        return replace(made, excess=_excess(weight, made.error, ranks))


def _unfoldings(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unfoldings along output and input channels."""
    return weight.flatten(1), weight.transpose(0, 1).flatten(1)


def _excess(weight: Tensor, error: float, ranks: tuple[int, ...]) -> float | None:
    """Return an upper bound on error / (error of the best factors of these ranks) - 1; None if there is none."""
    energy = float(weight.double().square().sum())
    spectra = (singular_values(part) for part in _unfoldings(weight))
    least = max(interlacing_bound(values, rank) for values, rank in zip(spectra, ranks, strict=True))
    return stored_excess(0.0, error**2 * energy, least, attainable(weight.dtype, energy))


def _output_values(weight: Tensor, moments: Moments) -> list[Tensor]:
    """Return the singular values of the outputs for both unfoldings; see `Tucker.spectra`."""
    second, (outer, inner) = damped_moment(moments), _unfoldings(weight.double().cpu())
    roots = torch.linalg.cholesky(channel_moment(second, len(inner)))
    grams = outer @ second @ outer.mT, gram(inner.mT @ roots, dtype=torch.float64)
    squares = [torch.linalg.eigvalsh(square).flip(0).clamp(min=0) for square in grams]
    scales = 1.0, float(squares[0].sum()) / (float(squares[1].sum()) or 1.0)
    found = zip(squares, scales, (outer, inner), strict=True)
    return [(values * scale).sqrt()[: min(unfolding.shape)] for values, scale, unfolding in found]

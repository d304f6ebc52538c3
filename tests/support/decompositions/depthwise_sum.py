"""A sum of two branches: a depthwise-separable convolution, and two stages by an SVD of the residual.

W[o, i] ≈ mixing[o, i] · filters[i] + second[o] · first[:, i], where the second branch starts with a selection of
channels. The selection keeps all channels in reverse order, so that its index matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors, relative_difference
from lrzip.core.layers import Layer
from lrzip.core.merge import merge
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Select, Stage, Sum, tensor_shapes
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver


@dataclass(frozen=True)
class DepthwiseSum:
    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        kernel = layer.kind.kernel(layer.weight.shape)
        if not layer.kind.is_plain_convolution or layer.groups > 1 or set(kernel) == {1}:
            return "no convolution with a kernel"
        return None

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        return (min(layer.matrix_shape),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return a spectrum with the tails of the residual and the energy of the weight."""
        assert moments is None
        residual = weight.double() - _separable_product(*_separable(weight))
        values = torch.linalg.svdvals(residual.flatten(1)).cpu()
        rest = float(weight.double().square().sum()) - float(values[1:].square().sum())
        values[0] = max(rest, float(values[0]) ** 2) ** 0.5
        return (Spectrum(values, layer.matrix_shape, torch.finfo(torch.float32).eps),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Sum:
        outputs, inputs, *kernel = layer.weight.shape
        (rank,) = ranks
        strided, fixed, pointwise = layer.stage.axes, (False,) * len(kernel), (1,) * len(kernel)
        depthwise = Stage(layer.kind, (inputs, 1, *kernel), inputs, strided)
        mixing = Stage(layer.kind, (outputs, inputs, *pointwise), axes=fixed)
        first = Stage(layer.kind, (rank, inputs, *kernel), axes=strided)
        second = Stage(layer.kind, (outputs, rank, *pointwise), axes=fixed)
        return Sum((Chain((depthwise, mixing)), Chain((Select(inputs), first, second))))

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
        del generator, subspaces
        assert moments is None
        (rank,) = ranks
        filters, mixing = _separable(weight)
        residual = weight.double() - _separable_product(filters, mixing)
        index = torch.arange(weight.shape[1]).flip(0)
        u, s, vh = torch.linalg.svd(residual[:, index].flatten(1), full_matrices=False)
        root = s[:rank].sqrt()
        factors = filters, mixing, index, root[:, None] * vh[:rank], u[:, :rank] * root
        structure = self.blueprint(layer, ranks)
        shapes = zip(factors, tensor_shapes(structure), strict=True)
        weights = tuple(_stored(factor.reshape(shape), dtype) for factor, shape in shapes)
        error = relative_difference(weight, merge(structure, weights, layer.stage).to(weight))
        return Factors(structure, weights, error, "exact")


def _separable(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best filter of each input channel (in, *kernel), and its coefficients in all outputs (out, in).

    They are the leading singular vectors of the matrix (out, kernel) of each input channel, in float64.
    """
    u, s, vh = torch.linalg.svd(weight.double().transpose(0, 1).flatten(2), full_matrices=False)
    root = s[:, :1].sqrt()
    return (root * vh[:, 0]).reshape(weight.shape[1:]), (root * u[:, :, 0]).mT


def _separable_product(filters: Tensor, mixing: Tensor) -> Tensor:
    return torch.einsum("oi,i...->oi...", mixing, filters)


def _stored(factor: Tensor, dtype: torch.dtype) -> Tensor:
    return (factor.to(dtype) if factor.is_floating_point() else factor).contiguous()

"""Two stages with a kernel along one axis each: k×1 to `rank` channels, then 1×k (Tai et al. 2016, section 2.1).

The truncated SVD of the unfolding (in · height, out · width) is W ≈ UΣVᵀ = (U√Σ)(√ΣVᵀ), which gives both kernels.
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
from lrzip.core.structure import Chain, Stage
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver


@dataclass(frozen=True)
class Spatial:
    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        kernel = layer.kind.kernel(layer.weight.shape)
        if not layer.kind.is_plain_convolution or layer.groups > 1 or len(kernel) != 2 or 1 in kernel:
            return "no convolution with a kernel of two axes"
        return None

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        return (min(_unfolded_shape(layer)),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        assert moments is None
        values = torch.linalg.svdvals(_unfold(weight)).cpu()
        return (Spectrum(values, _unfolded_shape(layer), torch.finfo(torch.float32).eps),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        outputs, inputs, height, width = layer.weight.shape
        (rank,) = ranks
        vertical = Stage(layer.kind, (rank, inputs, height, 1), axes=(True, False))
        return Chain((vertical, Stage(layer.kind, (outputs, rank, 1, width), axes=(False, True))))

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
        outputs, inputs, height, width = layer.weight.shape
        (rank,) = ranks
        u, s, vh = torch.linalg.svd(_unfold(weight), full_matrices=False)
        root = s[:rank].sqrt()
        vertical = (u[:, :rank] * root).mT.reshape(rank, inputs, height, 1)
        horizontal = (root[:, None] * vh[:rank]).reshape(rank, outputs, 1, width).transpose(0, 1)
        structure = self.blueprint(layer, ranks)
        weights = tuple(factor.to(dtype).contiguous() for factor in (vertical, horizontal))
        error = relative_difference(weight, merge(structure, weights, layer.stage).to(weight))
        return Factors(structure, weights, error, "exact")


def _unfolded_shape(layer: Layer) -> tuple[int, int]:
    outputs, inputs, height, width = layer.weight.shape
    return inputs * height, outputs * width


def _unfold(weight: Tensor) -> Tensor:
    """Return the unfolding (in · height, out · width) of a weight (out, in, height, width), in float64."""
    return weight.double().permute(1, 2, 0, 3).flatten(2).flatten(0, 1)

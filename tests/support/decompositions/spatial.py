"""Two stages along one axis each: k×1 to `rank` channels, then 1×k (Tai et al. 2016, section 2.1)."""

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
        return (min(self._shape(layer)),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        assert moments is None
        values = torch.linalg.svdvals(self._matrix(weight).double()).cpu()
        return (Spectrum(values, self._shape(layer), torch.finfo(torch.float32).eps),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        out, inner, height, width = layer.weight.shape
        (rank,) = ranks
        first = Stage(layer.kind, (rank, inner, height, 1), 1, (True, False))
        return Chain((first, Stage(layer.kind, (out, rank, 1, width), 1, (False, True))))

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
        out, inner, height, width = layer.weight.shape
        (rank,) = ranks
        u, s, vh = torch.linalg.svd(self._matrix(weight).double(), full_matrices=False)
        root = s[:rank].sqrt()
        vertical = (u[:, :rank] * root).mT.reshape(rank, inner, height, 1)
        horizontal = (root[:, None] * vh[:rank]).mT.reshape(out, width, rank).permute(0, 2, 1)[:, :, None]
        weights = tuple(part.to(dtype).contiguous() for part in (vertical, horizontal))
        structure = self.blueprint(layer, ranks)
        error = relative_difference(weight, merge(structure, weights, layer.stage).to(weight))
        return Factors(structure, weights, error, "exact")

    def _shape(self, layer: Layer) -> tuple[int, int]:
        out, inner, height, width = layer.weight.shape
        return inner * height, out * width

    def _matrix(self, weight: Tensor) -> Tensor:
        """Return the unfolding (in · height, out · width)."""
        return weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)

"""A tensor train of two cores for a linear layer: y = G₂ (G₁ x), each acting on one of two factors of the sizes.

W[(m₁, m₂), (n₁, n₂)] = Σ_r G₁[m₁, r, n₁] G₂[m₂, r, n₂] (Novikov et al. 2015), by the SVD of (m₁ n₁) × (m₂ n₂).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors, relative_difference
from lrzip.core.layers import Layer
from lrzip.core.merge import merge
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Reshape, Stage
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver


@dataclass(frozen=True)
class TensorTrain:
    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        is_linear = not layer.kind.is_convolution and not layer.kind.is_indexed and layer.groups == 1
        return None if is_linear and all(size > 1 for size in self._sizes(layer)) else "no linear layer of two factors"

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        m1, m2, n1, n2 = self._sizes(layer)
        return (min(m1 * n1, m2 * n2),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        assert moments is None
        matrix = self._matrix(layer, weight)
        shape = (matrix.shape[0], matrix.shape[1])
        return (Spectrum(torch.linalg.svdvals(matrix).cpu(), shape, torch.finfo(torch.float32).eps),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        m1, m2, n1, n2 = self._sizes(layer)
        (rank,) = ranks
        linear = layer.kind.pointwise
        return Chain(
            (
                Reshape(1, (n1, n2), (1, 0), (n2, n1)),
                Stage(linear, (m1 * rank, n1)),  # n₁ to (m₁, r), for each n₂
                Reshape(2, (n2, m1, rank), (1, 0, 2), (m1, n2 * rank)),
                Stage(linear, (m2, n2 * rank)),  # (n₂, r) to m₂, for each m₁
                Reshape(2, (m1, m2), (0, 1), (m1 * m2,)),
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
        del generator, subspaces
        assert moments is None
        m1, m2, n1, n2 = self._sizes(layer)
        (rank,) = ranks
        u, s, vh = torch.linalg.svd(self._matrix(layer, weight), full_matrices=False)
        root = s[:rank].sqrt()
        first = (u[:, :rank] * root).reshape(m1, n1, rank).permute(0, 2, 1).reshape(m1 * rank, n1)
        second = (root[:, None] * vh[:rank]).reshape(rank, m2, n2).permute(1, 2, 0).reshape(m2, n2 * rank)
        structure, weights = self.blueprint(layer, ranks), (first.to(dtype).contiguous(), second.to(dtype).contiguous())
        error = relative_difference(weight, merge(structure, weights, layer.stage).to(weight))
        return Factors(structure, weights, error, "exact")

    def _sizes(self, layer: Layer) -> tuple[int, int, int, int]:
        """Return m₁, m₂, n₁, n₂: the most equal factors of the numbers of outputs and inputs."""
        outputs, inputs = layer.kind.channels(layer.weight.shape)
        return *self._factors(outputs), *self._factors(inputs)

    def _factors(self, size: int) -> tuple[int, int]:
        first = next(factor for factor in range(isqrt(size), 0, -1) if size % factor == 0)
        return first, size // first

    def _matrix(self, layer: Layer, weight: Tensor) -> Tensor:
        """Return the unfolding (m₁ n₁) × (m₂ n₂)."""
        m1, m2, n1, n2 = self._sizes(layer)
        tensor = layer.kind.outputs_first(weight).double().reshape(m1, m2, n1, n2)
        return tensor.permute(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)

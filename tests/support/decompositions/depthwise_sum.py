"""A sum: a depthwise stage and a pointwise one, and beside them two stages for what these miss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors, relative_difference
from lrzip.core.layers import Layer
from lrzip.core.merge import merge
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Select, Stage, Sum
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
        assert moments is None
        rest = weight.double() - self._depthwise_product(weight)
        values = torch.linalg.svdvals(rest.flatten(1)).cpu()
        # The tails are those of the rest, and the first value brings the energy to that of the weight.
        first = float(weight.double().square().sum()) - float(values[1:].square().sum())
        values[0] = max(first, float(values[0]) ** 2) ** 0.5
        return (Spectrum(values, layer.matrix_shape, torch.finfo(torch.float32).eps),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Sum:
        out, inner, *kernel = layer.weight.shape
        (rank,) = ranks
        axes, none, points = layer.stage.axes, (False,) * len(kernel), (1,) * len(kernel)
        depthwise = Chain(
            (Stage(layer.kind, (inner, 1, *kernel), inner, axes), Stage(layer.kind, (out, inner, *points), 1, none))
        )
        selected = Stage(layer.kind, (rank, inner, *kernel), 1, axes)
        return Sum((depthwise, Chain((Select(inner), selected, Stage(layer.kind, (out, rank, *points), 1, none)))))

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
        filters, mixing = self._depthwise(weight)
        rest = weight.double() - torch.einsum("oi,i...->oi...", mixing, filters)
        order = torch.arange(weight.shape[1] - 1, -1, -1)
        u, s, vh = torch.linalg.svd(rest[:, order].flatten(1), full_matrices=False)
        root = s[:rank].sqrt()
        structure = self.blueprint(layer, ranks)
        shapes = [stage.shape for branch in structure.branches for stage in branch.parts if isinstance(stage, Stage)]  # type: ignore[union-attr]
        dense = (filters[:, None], mixing, root[:, None] * vh[:rank], u[:, :rank] * root)
        stored = [part.reshape(shape).to(dtype).contiguous() for part, shape in zip(dense, shapes, strict=True)]
        weights = (*stored[:2], order, *stored[2:])
        error = relative_difference(weight, merge(structure, weights, layer.stage).to(weight))
        return Factors(structure, weights, error, "exact")

    def _depthwise(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best filter of each input channel (in, *kernel), and how outputs mix them (out, in)."""
        u, s, vh = torch.linalg.svd(weight.double().transpose(0, 1).flatten(2), full_matrices=False)
        root = s[:, :1].sqrt()
        return (root * vh[:, 0]).reshape(weight.shape[1:]), (root * u[:, :, 0]).mT

    def _depthwise_product(self, weight: Tensor) -> Tensor:
        filters, mixing = self._depthwise(weight)
        return torch.einsum("oi,i...->oi...", mixing, filters)

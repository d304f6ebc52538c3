"""SVD of a layer that is stored as a product already, such as an adapter: the product gets a smaller rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Stage
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.low_rank_svd import product_error, product_svd, product_values
from lrzip.linalg.solver import Solver


@dataclass(frozen=True)
class PairSVD:
    """Truncated SVD of a product W = scale · B A from its factors; the result is a pair with the same scale.

    Attributes:
        solver: Solver of truncated SVDs, which the small matrices here do not need.
    """

    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        """Refuse dense layers."""
        return None if layer.pair else "not stored as a product"

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the rank that the product can have."""
        return (min(layer.weight.shape[1], *layer.matrix_shape),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the singular values of the scaled product that may differ from zero, as those of a small matrix."""
        assert moments is None, "adapters have no network to calibrate"
        assert layer.pair
        values = product_values(*_factors(layer, weight)).cpu() * abs(layer.pair.scale)
        return (Spectrum(values, (len(values), len(values)), torch.finfo(weight.dtype).eps),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return (): the factors are computed directly."""
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Stage:
        """Return the same pair of another rank."""
        return Stage(layer.kind, (layer.weight.shape[0], *ranks))

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
        """Return the pair with the least error of the product, with the singular values split over both factors."""
        del generator, subspaces, moments
        left, right = _factors(layer, weight)
        found = product_svd(left, right, *ranks)
        root = found.s.sqrt()
        new_left, new_right = (found.u * root).to(dtype), (root[:, None] * found.vh).to(dtype)
        return Factors(
            structure=self.blueprint(layer, ranks),
            weights=(torch.cat([new_left, new_right.mT]).cpu().contiguous(),),
            error=product_error(left, right, new_left, new_right),
            method=found.method,
            excess=found.excess,
        )


def _factors(layer: Layer, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return B (outputs, rank) and A (rank, inputs)."""
    assert layer.pair, "only layers that are stored as a product are resized"
    return weight[: layer.pair.outputs], weight[layer.pair.outputs :].mT

"""Two stages by the truncated SVD of the channel unfolding: W ≈ UΣVᵀ = (U√Σ)(√ΣVᵀ).

A linear layer becomes two. A k×k convolution becomes a k×k convolution to `rank` channels, which keeps stride, padding
and dilation, and a 1×1 convolution with the bias (channel scheme; Zhang et al. 2015, section 3.1).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lrzip.factors import Factors, StageSpec, relative_error
from lrzip.layers import Layer
from lrzip.linalg.svd import Solver, singular_values, truncated_svd
from lrzip.spectrum import Spectrum


@dataclass(frozen=True)
class SVD:
    """Truncated SVD of the (out, in · prod(kernel)) unfolding. Its one rank is at most the smaller side."""

    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        """Return None: every layer has a channel unfolding."""
        del layer
        return None

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the smaller side of the unfolding."""
        return (min(layer.matrix_shape),)

    def spectra(self, layer: Layer, weight: Tensor) -> tuple[Spectrum, ...]:
        """Return the one spectrum, exact to the precision of the weight's dtype."""
        values = singular_values(weight.flatten(1)).cpu()
        return (Spectrum(values, layer.matrix_shape, torch.finfo(weight.dtype).eps),)

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> tuple[StageSpec, ...]:
        """Return (rank, in, *kernel) and (out, rank, 1, …)."""
        out, *inner = layer.weight.shape
        (rank,) = ranks
        return (
            StageSpec(layer.kind, (rank, *inner)),
            StageSpec(layer.kind, (out, rank, *(1 for _ in inner[1:]))),
        )

    def factorize(
        self, layer: Layer, weight: Tensor, ranks: tuple[int, ...], *, dtype: torch.dtype, generator: Generator
    ) -> Factors:
        """Return the two stages, with singular values split as square roots over both.

        Balanced factors lose least in half precision, and fine-tuning unbalanced ones diverges.
        """
        first, second, method = self._balanced(layer, weight, ranks[0], generator)
        stored = (first.to(dtype), second.to(dtype))
        del first, second  # all that is needed from here on is what is stored
        error = relative_error(weight, stored)
        return Factors(tuple(stage.cpu().contiguous() for stage in stored), error, method)

    def _balanced(self, layer: Layer, weight: Tensor, rank: int, generator: Generator) -> tuple[Tensor, Tensor, str]:
        first, second = self.blueprint(layer, (rank,))
        u, s, vh, method = truncated_svd(weight.flatten(1), rank, solver=self.solver, generator=generator)
        root = s.sqrt()
        return (root[:, None] * vh).reshape(first.shape), (u * root).reshape(second.shape), method

"""Two stages by the truncated SVD of the channel unfolding: W ≈ UΣVᵀ = (U√Σ)(√ΣVᵀ).

A linear layer becomes two. A k×k convolution becomes a k×k convolution to `rank` channels, which keeps stride, padding
and dilation, and a 1×1 convolution with the bias (channel scheme; Zhang et al. 2015, section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Generator, Tensor

from lrzip.factors import Factors, StageSpec, relative_error
from lrzip.layers import Layer
from lrzip.linalg.gram import gram, product, tall
from lrzip.linalg.subspace import Subspace, compute_dtype, full_subspace
from lrzip.linalg.svd import SUBSPACE_METHODS, Solver, TruncatedSVD, find_subspace, singular_values, truncated_svd
from lrzip.spectrum import Spectrum

# Below this share of ‖W‖_F² a difference of sums loses too many digits to tell an error.
_MEASURABLE = 1e-4
# Elements of a column whose products are summed in float32.
_ROWS = 512


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
        return (Spectrum(values, layer.matrix_shape, torch.finfo(compute_dtype(weight.dtype)).eps),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return the whole spectrum and the leading `rank` singular vectors, if the solver makes use of them."""
        del layer
        if self.solver.method not in SUBSPACE_METHODS:
            return ()
        return (full_subspace(weight.flatten(1), rank, tolerance=self.solver.tolerance),)

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> tuple[StageSpec, ...]:
        """Return (rank, in, *kernel) and (out, rank, 1, …)."""
        out, *inner = layer.weight.shape
        (rank,) = ranks
        return (
            StageSpec(layer.kind, (rank, *inner)),
            StageSpec(layer.kind, (out, rank, *(1 for _ in inner[1:]))),
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
    ) -> Factors:
        """Return the two stages, with singular values split as square roots over both.

        Balanced factors lose least in half precision, and fine-tuning unbalanced ones diverges.
        """
        (rank,) = ranks
        matrix = weight.flatten(1)
        if self.solver.method not in SUBSPACE_METHODS:
            found = _balanced(matrix, truncated_svd(matrix, rank, solver=self.solver, generator=generator), dtype)
        elif subspaces and self._suffices(subspaces[0], rank):
            found = _within(matrix, subspaces[0], rank, dtype)
        else:
            found = _within(matrix, find_subspace(matrix, rank, solver=self.solver, generator=generator), rank, dtype)
        shapes = (stage.shape for stage in self.blueprint(layer, ranks))
        stages = zip(found.weights, shapes, strict=True)
        return replace(found, weights=tuple(part.cpu().reshape(shape).contiguous() for part, shape in stages))

    def _suffices(self, subspace: Subspace, rank: int) -> bool:
        return rank <= subspace.vectors.shape[1] and subspace.excess(rank) <= self.solver.tolerance


def _balanced(matrix: Tensor, found: TruncatedSVD, dtype: torch.dtype) -> Factors:
    """Return the factors of a truncated SVD as matrices, in the order of application."""
    root = found.s.sqrt()
    pair = ((root[:, None] * found.vh).to(dtype), (found.u * root).to(dtype))
    return Factors(pair, relative_error(matrix, pair), found.method, found.excess)


def _within(matrix: Tensor, subspace: Subspace, rank: int, dtype: torch.dtype) -> Factors:
    """Return the factors of A V Vᵀ as matrices, in the order of application.

    One factor is X = V√Σ as it is stored; the other is Y = A X / Σ, so that it makes up for the rounding of the first.
    Then ‖A − YXᵀ‖² = ‖A‖² − 2⟨AX, Y⟩ + ⟨YᵀY, XᵀX⟩, which takes no second product of the size of A.
    """
    columns = tall(matrix)
    compute = subspace.vectors.dtype
    # Directions that are nothing but rounding get balanced as if they were just above it.
    s = subspace.squares[:rank].clamp(min=subspace.floor).sqrt().to(columns.device, compute)
    basis = (subspace.vectors[:, :rank] * s.sqrt()).to(dtype)
    image = product(columns, basis.to(compute)).div_(s)
    stored = image.to(dtype)
    crossed = _crossed(image, stored) @ s.double()
    del image
    overlap = gram(stored, dtype=compute).double() * gram(basis, dtype=compute)
    squared = subspace.energy - 2 * float(crossed) + float(overlap.sum())
    pair = (basis.mT, stored) if columns.shape == matrix.shape else (stored.mT, basis)
    measurable = squared >= _MEASURABLE * subspace.energy
    error = sqrt(squared / subspace.energy) if measurable else relative_error(matrix, pair)
    return Factors(pair, error, subspace.method, subspace.excess(rank))


def _crossed(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner products of the columns of two matrices: of pieces in float32, summed in float64."""
    rows = zip(torch.split(first, _ROWS), torch.split(second, _ROWS), strict=True)
    return torch.stack([(a * b).sum(0).double() for a, b in rows]).sum(0)

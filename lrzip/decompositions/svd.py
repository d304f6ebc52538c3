"""Two stages by the truncated SVD of the channel unfolding: W ≈ UΣVᵀ = (U√Σ)(√ΣVᵀ).

A linear layer becomes two. A k×k convolution becomes a k×k convolution to `rank` channels, which keeps stride, padding
and dilation, and a 1×1 convolution with the bias (channel scheme; Zhang et al. 2015, section 3.1). A grouped
convolution becomes two grouped ones, with this rank in each group. A transposed convolution becomes a 1×1 convolution
to `rank` channels and a transposed one with the bias; an embedding becomes a narrower one and a linear layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Stage, tensor_shapes
from lrzip.decompositions.products import (
    InputWhitening,
    Product,
    joint_error,
    projected_product,
    split_product,
    whitened_product,
)
from lrzip.linalg.blocks.precision import compute_dtype
from lrzip.linalg.blocks.subspace import Subspace, full_subspace
from lrzip.linalg.svd import SUBSPACE_METHODS, Solver, find_subspace, singular_values, truncated_svd


@dataclass(frozen=True)
class SVD:
    """Truncated SVD of the channel unfolding of each group, with one rank for all groups.

    Attributes:
        solver: Solver of the truncated SVD.
    """

    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        """Refuse grouped transposed convolutions, for which no two stages are smaller, and stored products."""
        if layer.groups > 1 and layer.kind.is_transposed_convolution:
            return "a transposed convolution in groups"
        if layer.pair:
            return "stored as a product already"
        return None

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the smaller side of the unfolding of one group."""
        return (min(layer.matrix_shape),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the spectrum of the unfolding, exact to the precision of the weight's dtype.

        With groups, its i-th value is the root of the sum of squares over the i-th values of all groups, so that the
        energy is that of all groups together, and the operator norm is that of the block-diagonal matrix of all groups.
        """
        matrices = _unfold(layer, weight)
        if moments:
            pairs = zip(matrices, _whitenings(layer, moments), strict=True)
            matrices = tuple(whitening.apply(matrix) for matrix, whitening in pairs)
        values = torch.stack([singular_values(matrix).cpu() for matrix in matrices])
        eps = torch.finfo(compute_dtype(weight.dtype)).eps
        return (Spectrum.of_blocks(values, layer.matrix_shape, eps),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return all singular values and the leading `rank` vectors; () for groups, or if the solver needs none."""
        if layer.groups > 1 or self.solver.method not in SUBSPACE_METHODS:
            return ()
        return (full_subspace(weight.flatten(1), rank, tolerance=self.solver.tolerance),)

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        """Return the two stages, whose weights are (rank, in) and (out, rank) for a linear layer.

        The first stage has the kernel and the stride; for a transposed convolution, the second stage has them.
        """
        (rank,) = ranks
        kind, dense = layer.kind, layer.stage
        outputs, inputs = kind.channels(dense.shape)
        kernel, pointwise, fixed = kind.kernel(dense.shape), (1,) * kind.spatial, (False,) * kind.spatial
        if kind.is_transposed_convolution:
            first = Stage(kind.pointwise, (rank, inputs, *pointwise), 1, fixed)
            return Chain((first, Stage(kind, (rank, outputs, *kernel), 1, dense.axes)))
        narrow = kind if kind.is_plain_convolution or kind.is_indexed else kind.pointwise
        first = Stage(narrow, narrow.shape(layer.groups * rank, inputs, kernel), layer.groups, dense.axes)
        return Chain((first, Stage(kind.pointwise, (outputs, rank, *pointwise), layer.groups, fixed)))

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
        """Return the two stages, with the singular values split as square roots over both."""
        (rank,) = ranks
        matrices = _unfold(layer, weight)
        if moments:
            pairs = zip(matrices, _whitenings(layer, moments), strict=True)
            products = [self._whitened_product(a, whitening, rank, dtype, generator) for a, whitening in pairs]
        else:
            subspace = subspaces[0] if subspaces else None
            products = [self._product(matrix, subspace, rank, dtype, generator) for matrix in matrices]
        structure = self.blueprint(layer, ranks)
        pairs_of_shapes = zip(_stage_weights(layer, products), tensor_shapes(structure), strict=True)
        return Factors(
            structure=structure,
            weights=tuple(matrix.cpu().reshape(shape).contiguous() for matrix, shape in pairs_of_shapes),
            error=joint_error([product.error for product in products]),
            method=" and ".join(dict.fromkeys(product.method for product in products)),
            excess=_largest_excess(products),
            output_error=_output_error(products),
        )

    def _product(
        self, matrix: Tensor, subspace: Subspace | None, rank: int, dtype: torch.dtype, generator: Generator
    ) -> Product:
        """Return the product with the least error of the matrix, from a subspace if that is accurate enough."""
        if self.solver.method not in SUBSPACE_METHODS:
            return split_product(matrix, truncated_svd(matrix, rank, solver=self.solver, generator=generator), dtype)
        if subspace is None or not self._is_accurate(subspace, rank):
            subspace = find_subspace(matrix, rank, solver=self.solver, generator=generator)
        return projected_product(matrix, subspace, rank, dtype)

    def _is_accurate(self, subspace: Subspace, rank: int) -> bool:
        return rank <= subspace.vectors.shape[1] and subspace.excess(rank) <= self.solver.tolerance

    def _whitened_product(
        self, matrix: Tensor, whitening: InputWhitening, rank: int, dtype: torch.dtype, generator: Generator
    ) -> Product:
        """Return the product with the least error of the outputs."""
        outputs = whitening.apply(matrix)
        found = truncated_svd(outputs, rank, solver=self.solver, generator=generator)
        return whitened_product(matrix, outputs, found, whitening, dtype)


def _unfold(layer: Layer, weight: Tensor) -> tuple[Tensor, ...]:
    """Return the channel unfolding of each group."""
    return weight.flatten(1).chunk(layer.groups)


def _whitenings(layer: Layer, moments: Moments) -> list[InputWhitening]:
    return InputWhitening.of_groups(moments, multiplies_rows=layer.kind.inputs_first)


def _stage_weights(layer: Layer, products: Sequence[Product]) -> tuple[Tensor, Tensor]:
    """Return the weights of both stages, flattened, from the products L (m, rank) R (rank, n) of all groups."""
    left = torch.cat([product.left for product in products])
    right = torch.cat([product.right for product in products])
    if not layer.kind.inputs_first:
        return right, left
    if layer.kind.is_indexed:
        return left, right.mT
    return left.mT, right if layer.kind.is_convolution else right.mT


def _largest_excess(products: Sequence[Product]) -> float | None:
    bounds = [product.excess for product in products if product.excess is not None]
    return max(bounds) if len(bounds) == len(products) else None


def _output_error(products: Sequence[Product]) -> float | None:
    errors = [product.output_error for product in products if product.output_error]
    return joint_error(errors) if errors else None

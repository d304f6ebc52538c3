"""Two stages by the truncated SVD of the channel unfolding: W ≈ UΣVᵀ = (U√Σ)(√ΣVᵀ).

A linear layer becomes two. A k×k convolution becomes a k×k convolution to `rank` channels, which keeps stride, padding
and dilation, and a 1×1 convolution with the bias (channel scheme; Zhang et al. 2015, section 3.1). A grouped one
becomes two grouped ones, each group with that rank. A transposed convolution becomes a 1×1 convolution to `rank`
channels and a transposed one with the bias, an embedding a narrower one and a linear layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors, relative_error
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Stage, tensor_shapes
from lrzip.linalg.blocks.gram import gram, product, squared_norm, tall
from lrzip.linalg.blocks.precision import compute_dtype
from lrzip.linalg.blocks.subspace import Subspace, full_subspace
from lrzip.linalg.svd import SUBSPACE_METHODS, Solver, TruncatedSVD, find_subspace, singular_values, truncated_svd
from lrzip.linalg.whitening import Whitening

# Below this share of ‖W‖_F² a difference of sums loses too many digits to tell an error.
_MEASURABLE = 1e-4
# Elements of a column whose products are summed in float32.
_ROWS = 512


@dataclass(frozen=True)
class SVD:
    """Truncated SVD of the channel unfolding, of each group by itself. Its one rank is at most the smaller side."""

    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        """Return a reason for transposed convolutions in groups, of which no chain of two is small."""
        if layer.groups > 1 and layer.kind.is_transposed_convolution:
            return "a transposed convolution in groups"
        return None

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the smaller side of the unfolding."""
        return (min(layer.matrix_shape),)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the one spectrum, exact to the precision of the weight's dtype.

        With groups, its i-th value is the root of the sum of squares of the groups' i-th ones: energies stay right.
        """
        matrices = _unfolded(layer, weight)
        if moments:
            pairs = zip(matrices, _whitenings(moments), strict=True)
            matrices = tuple(_seen(layer, matrix, whitening) for matrix, whitening in pairs)
        squares = torch.stack([singular_values(matrix).cpu().square() for matrix in matrices])
        eps = torch.finfo(compute_dtype(weight.dtype)).eps
        return (Spectrum(squares.sum(0).sqrt(), layer.matrix_shape, eps),)

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return the whole spectrum and the leading `rank` singular vectors, if the solver makes use of them."""
        if layer.groups > 1 or self.solver.method not in SUBSPACE_METHODS:
            return ()
        return (full_subspace(weight.flatten(1), rank, tolerance=self.solver.tolerance),)

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        """Return the two stages: (rank, in) and (out, rank) of a linear layer, and their like for other kinds.

        The stage that keeps the kernel, with all axes, is the first one, or the second of a transposed convolution.
        """
        (rank,) = ranks
        kind, stage = layer.kind, layer.stage
        outputs, inputs = kind.channels(stage.shape)
        kernel, points = kind.kernel(stage.shape), (1,) * kind.spatial
        strided, pointwise = stage.axes, (False,) * kind.spatial
        first = kind if kind.is_plain_convolution or kind.is_indexed else kind.pointwise
        if kind.is_transposed_convolution:
            narrow = Stage(kind.pointwise, (rank, inputs, *points), 1, pointwise)
            return Chain((narrow, Stage(kind, (rank, outputs, *kernel), 1, strided)))
        narrow = Stage(first, first.shape(layer.groups * rank, inputs, kernel), layer.groups, strided)
        return Chain((narrow, Stage(kind.pointwise, (outputs, rank, *points), layer.groups, pointwise)))

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
        """Return the two stages, with singular values split as square roots over both.

        Balanced factors lose least in half precision, and fine-tuning unbalanced ones diverges.
        """
        (rank,) = ranks
        matrices = _unfolded(layer, weight)
        if moments:
            pairs = zip(matrices, _whitenings(moments), strict=True)
            parts = [self._split_whitened(layer, matrix, rank, dtype, generator, white) for matrix, white in pairs]
        else:
            subspace = subspaces[0] if subspaces else None
            parts = [self._split(matrix, rank, dtype, generator, subspace) for matrix in matrices]
        left, right = (torch.cat([getattr(part, side) for part in parts]) for side in ("left", "right"))
        structure = self.blueprint(layer, ranks)
        pair = _ordered(layer, left, right)
        shapes = zip(pair, tensor_shapes(structure), strict=True)
        bounds = [part.excess for part in parts if part.excess is not None]
        return Factors(
            structure=structure,
            weights=tuple(matrix.cpu().reshape(shape).contiguous() for matrix, shape in shapes),
            error=_mean_error([(part.error, part.energy) for part in parts]),
            method=" and ".join(dict.fromkeys(part.method for part in parts)),
            excess=max(bounds) if len(bounds) == len(parts) else None,
            output_error=_mean_error([part.seen for part in parts if part.seen]) if moments else None,
        )

    def _split(
        self, matrix: Tensor, rank: int, dtype: torch.dtype, generator: Generator, subspace: Subspace | None
    ) -> "_Split":
        if self.solver.method not in SUBSPACE_METHODS:
            return _balanced(matrix, truncated_svd(matrix, rank, solver=self.solver, generator=generator), dtype)
        if subspace and self._suffices(subspace, rank):
            return _within(matrix, subspace, rank, dtype)
        return _within(matrix, find_subspace(matrix, rank, solver=self.solver, generator=generator), rank, dtype)

    def _split_whitened(
        self, layer: Layer, matrix: Tensor, rank: int, dtype: torch.dtype, generator: Generator, white: Whitening
    ) -> "_Split":
        """Return the product that is nearest on given inputs."""
        seen = _seen(layer, matrix, white)
        found = truncated_svd(seen, rank, solver=self.solver, generator=generator)
        if layer.kind.inputs_first:
            left, right = _rebalanced(white.undo((found.u * found.s).mT).mT, found.vh)
        else:
            left, right = _rebalanced(found.u, white.undo(found.s[:, None] * found.vh))
        left, right = left.to(dtype), right.to(dtype)
        missed = _seen(layer, matrix - (left.float() @ right.float()).to(matrix.device), white)
        energy, output_energy = squared_norm(matrix), squared_norm(seen)
        output_error = sqrt(squared_norm(missed) / output_energy) if output_energy else 0.0
        error = relative_error(matrix, left, right)
        return _Split(left, right, energy, error, found.method, found.excess, (output_error, output_energy))

    def _suffices(self, subspace: Subspace, rank: int) -> bool:
        return rank <= subspace.vectors.shape[1] and subspace.excess(rank) <= self.solver.tolerance


@dataclass(frozen=True)
class _Split:
    """A matrix as a product: A ≈ left · right, both in the stored dtype, with ‖A‖_F² and the relative error.

    `seen` is the relative error of its outputs, with their squared norm, for given inputs.
    """

    left: Tensor
    right: Tensor
    energy: float
    error: float
    method: str
    excess: float | None
    seen: tuple[float, float] | None = None


def _mean_error(parts: Sequence[tuple[float, float]]) -> float:
    """Return the relative error of several matrices together, from that and the squared norm of each."""
    if len(parts) == 1:
        return parts[0][0]
    energy = sum(energy for _, energy in parts)
    return sqrt(sum(error**2 * energy for error, energy in parts) / energy) if energy else 0.0


def _whitenings(moments: Moments) -> list[Whitening]:
    return [Whitening.of(second, moments.damping) for second in moments.second]


def _seen(layer: Layer, matrix: Tensor, white: Whitening) -> Tensor:
    """Return what a matrix makes of its inputs, up to a rotation of them."""
    return white.apply(matrix.mT).mT if layer.kind.inputs_first else white.apply(matrix)


def _rebalanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors (m, k), (k, n) of the same product whose Gram matrices are the same diagonal one."""
    (q, r), (p, t) = torch.linalg.qr(left.double()), torch.linalg.qr(right.double().mT)
    u, s, vh = torch.linalg.svd(r @ t.mT)
    root = s.sqrt()
    return (q @ (u * root)).to(left.dtype), ((p @ vh.mT) * root).mT.to(right.dtype)


def _ordered(layer: Layer, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors L (m, k) and R (k, n) of the unfolding in the order and the layout of the two stages."""
    if not layer.kind.inputs_first:
        return right, left
    if layer.kind.is_indexed:
        return left, right.mT
    return left.mT, right if layer.kind.is_convolution else right.mT


def _unfolded(layer: Layer, weight: Tensor) -> tuple[Tensor, ...]:
    """Return the channel unfolding of each group."""
    return weight.flatten(1).chunk(layer.groups)


def _balanced(matrix: Tensor, found: TruncatedSVD, dtype: torch.dtype) -> _Split:
    """Return the product of the factors of a truncated SVD."""
    root = found.s.sqrt()
    left, right = (found.u * root).to(dtype), (root[:, None] * found.vh).to(dtype)
    error = relative_error(matrix, left, right)
    return _Split(left, right, squared_norm(matrix), error, found.method, found.excess)


def _within(matrix: Tensor, subspace: Subspace, rank: int, dtype: torch.dtype) -> _Split:
    """Return the product that stands for A V Vᵀ.

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
    left, right = (stored, basis.mT) if columns.shape == matrix.shape else (basis, stored.mT)
    measurable = squared >= _MEASURABLE * subspace.energy
    error = sqrt(squared / subspace.energy) if measurable else relative_error(matrix, left, right)
    return _Split(left, right, subspace.energy, error, subspace.method, subspace.excess(rank))


def _crossed(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner products of the columns of two matrices: of pieces in float32, summed in float64."""
    rows = zip(torch.split(first, _ROWS), torch.split(second, _ROWS), strict=True)
    return torch.stack([(a * b).sum(0).double() for a, b in rows]).sum(0)

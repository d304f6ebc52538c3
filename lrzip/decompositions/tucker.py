"""Three stages by Tucker-2: a 1×1 convolution to fewer channels, the kernel between these, a 1×1 one to all channels.

Input and output channels of a k×k convolution get a rank each; the kernel, with stride, padding and dilation, keeps its
size (Kim et al. 2016, 'Compression of deep convolutional neural networks for fast and low power mobile applications',
section 3.1). Where all kernels are of one element, this would be the truncated SVD with a stage too many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors, relative_difference
from lrzip.core.layers import Layer
from lrzip.core.merge import merge
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Stage, tensor_shapes
from lrzip.linalg.blocks.gram import gram
from lrzip.linalg.blocks.precision import attainable, compute_dtype
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver, singular_values
from lrzip.linalg.tucker import Tucker2, balanced, tucker2
from lrzip.linalg.weighted_tucker import channel_moment, weighted_tucker2


@dataclass(frozen=True)
class Tucker:
    """Tucker-2 of convolutions with a kernel. Its ranks are those of output and input channels, in this order.

    Attributes:
        solver: Not used: it is for truncated SVDs.
    """

    solver: Solver

    def refuse(self, layer: Layer) -> str | None:
        """Return a reason for all that is no convolution with a kernel, and for groups."""
        if not layer.kind.is_plain_convolution:
            return "no convolution"
        if layer.groups > 1:
            return "a convolution in groups"
        return None if prod(layer.weight.shape[2:]) > 1 else "a convolution without a kernel"

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the smaller sides of the unfoldings along output and input channels."""
        out, inner, *kernel = layer.weight.shape
        points = prod(kernel)
        return min(out, inner * points), min(inner, out * points)

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the spectra along output and input channels, exact to the precision of the weight's dtype.

        With moments, that along output channels is exact for these inputs; that along input channels takes those of
        different places in the kernel for uncorrelated and alike, and is scaled to the same energy.
        """
        del layer
        unfoldings = _unfoldings(weight)
        if moments is None:
            values = [singular_values(unfolding).cpu() for unfolding in unfoldings]
        else:
            values = _seen_values(weight, moments)
        eps = torch.finfo(compute_dtype(weight.dtype)).eps
        return tuple(
            Spectrum(found, (unfolding.shape[0], unfolding.shape[1]), eps)
            for found, unfolding in zip(values, unfoldings, strict=True)
        )

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return nothing: the bases depend on each other's ranks."""
        del layer, weight, rank
        return ()

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Chain:
        """Return the three stages: (in rank, in, 1, 1), (out rank, in rank, k, k) and (out, out rank, 1, 1)."""
        out, inner, *kernel = layer.weight.shape
        outer_rank, inner_rank = ranks
        points, none = (1,) * len(kernel), (False,) * len(kernel)
        return Chain(
            (
                Stage(layer.kind, (inner_rank, inner, *points), 1, none),
                Stage(layer.kind, (outer_rank, inner_rank, *kernel), 1, layer.stage.axes),
                Stage(layer.kind, (out, outer_rank, *points), 1, none),
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
        """Return the three stages, with scales spread evenly over them.

        The best factors are not known, as they are of a matrix. Their error is at least the tail of either spectrum,
        and that bounds by how much the error here exceeds it, where there are no moments.
        """
        del generator, subspaces
        outer_rank, inner_rank = ranks
        tensor, second = weight.flatten(2), _damped(moments) if moments else None
        if second is None:
            found = balanced(tucker2(tensor, (outer_rank, inner_rank)))
        else:
            found = balanced(weighted_tucker2(tensor, second, (outer_rank, inner_rank)))
        parts = found.inner.mT, found.core, found.outer
        structure = self.blueprint(layer, ranks)
        shapes = zip(parts, tensor_shapes(structure), strict=True)
        weights = tuple(part.to("cpu", dtype).reshape(shape).contiguous() for part, shape in shapes)
        dense = merge(structure, weights, layer.stage).to(weight.device)
        error = relative_difference(weight, dense)
        if second is None:
            return Factors(structure, weights, error, "orthogonal-iteration", _excess(weight, found, ranks))
        seen = _energy(weight, second)
        output_error = sqrt(_energy(weight - dense, second) / seen) if seen else 0.0
        return Factors(structure, weights, error, "alternating-least-squares", output_error=output_error)


def _unfoldings(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unfoldings along output and input channels."""
    return weight.flatten(1), weight.transpose(0, 1).flatten(1)


def _excess(weight: Tensor, found: Tucker2, ranks: tuple[int, ...]) -> float:
    """Return a bound on the error over that of the best factors of these ranks, less 1."""
    energy = float(weight.double().square().sum())
    product = torch.einsum("rsp,mr,ns->mnp", found.core, found.outer, found.inner)
    squared = float((weight.double().flatten(2) - product).square().sum())
    if squared <= attainable(weight.dtype, energy):
        return 0.0
    tails = (singular_values(part)[rank:] for part, rank in zip(_unfoldings(weight), ranks, strict=True))
    least = max(float(tail.square().sum()) for tail in tails)
    return max(float((squared / max(least, attainable(weight.dtype, energy))) ** 0.5) - 1, 0.0)


def _damped(moments: Moments) -> Tensor:
    """Return the second moment of the inputs, with a share of its mean in all directions."""
    (second,) = moments.second
    added = moments.damping * (float(second.diagonal().mean()) or 1.0)
    damped: Tensor = second + added * torch.eye(len(second), dtype=second.dtype)
    if not torch.linalg.cholesky_ex(damped).info:
        return damped
    # Of inputs with a mean that is large beside their spread, float32 products leave negative eigenvalues.
    values, vectors = torch.linalg.eigh(second)
    positive: Tensor = (vectors * (values.clamp(min=0) + added)) @ vectors.mT
    return positive


def _seen_values(weight: Tensor, moments: Moments) -> list[Tensor]:
    """Return the singular values of both unfoldings of what a weight makes of its inputs; see `spectra`."""
    second, (outer, inner) = _damped(moments), _unfoldings(weight.double().cpu())
    roots = torch.linalg.cholesky(channel_moment(second, len(inner)))
    grams = outer @ second @ outer.mT, gram(inner.mT @ roots, dtype=torch.float64)
    squares = [torch.linalg.eigvalsh(square).flip(0).clamp(min=0) for square in grams]
    scales = 1.0, float(squares[0].sum()) / (float(squares[1].sum()) or 1.0)
    found = zip(squares, scales, (outer, inner), strict=True)
    return [(values * scale).sqrt()[: min(unfolding.shape)] for values, scale, unfolding in found]


def _energy(weight: Tensor, second: Tensor) -> float:
    """Return E‖Wx‖²."""
    matrix = weight.flatten(1).to(second)
    return float(((matrix @ second) * matrix).sum())

"""Common parts of the decompositions of convolutions: refusals, chains, balanced and stored factors, and spectra."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod, sqrt

import torch
from torch import Tensor

from lrzip.core.factors import Factors, relative_difference
from lrzip.core.layers import Layer
from lrzip.core.merge import merge
from lrzip.core.moments import Moments
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Chain, Stage, Structure, tensor_shapes
from lrzip.decompositions.outputs import output_energy
from lrzip.linalg.blocks.certificate import stored_excess
from lrzip.linalg.blocks.precision import attainable, compute_dtype
from lrzip.linalg.blocks.subnormals import stored


def refusal_of_convolution(layer: Layer) -> str | None:
    """Return why a layer is no ungrouped, untransposed convolution with a kernel, or None if it is one."""
    if not layer.kind.is_plain_convolution:
        return "no convolution"
    if layer.groups > 1:
        return "a convolution in groups"
    return None if prod(layer.kind.kernel(layer.weight.shape)) > 1 else "a convolution without a kernel"


def refusal_of_separable(layer: Layer) -> str | None:
    """Return why a layer is no ungrouped, untransposed 2-D convolution with a kernel along both axes, or None."""
    reason = refusal_of_convolution(layer)
    kernel = layer.kind.kernel(layer.weight.shape)
    return reason or (None if len(kernel) == 2 and 1 not in kernel else "a kernel along a single axis")


def depthwise_chain(layer: Layer, multiplier: int) -> Chain:
    """Return a depthwise convolution with some filters for each input channel, and a 1×1 convolution."""
    outputs, inputs, *kernel = layer.weight.shape
    pointwise, fixed = (1,) * len(kernel), (False,) * len(kernel)
    depthwise = Stage(layer.kind, (inputs * multiplier, 1, *kernel), inputs, layer.stage.axes)
    return Chain((depthwise, Stage(layer.kind, (outputs, inputs * multiplier, *pointwise), axes=fixed)))


def balanced_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of two stages with the same norm for each channel between them.

    Args:
        first: Weight whose first axis has the channels.
        second: Weight (out, channels, …).
    """
    norms = first.flatten(1).norm(dim=1), second.transpose(0, 1).flatten(1).norm(dim=1)
    scale = torch.where(norms[0] * norms[1] > 0, (norms[1] / norms[0]).sqrt(), torch.ones_like(norms[0]))
    shape = (-1, *(1,) * (first.dim() - 1))
    return first * scale.reshape(shape), second / scale.reshape(1, *shape[:-1])


def stored_factors(
    layer: Layer, weight: Tensor, structure: Structure, factors: Sequence[Tensor], dtype: torch.dtype, *, method: str
) -> Factors:
    """Return factors in their stored dtype and shapes, with the error of their dense product.

    Args:
        layer: The layer.
        weight: Its weight.
        structure: The structure.
        factors: Weights of its stages, of any shape with the right number of elements.
        dtype: Stored dtype.
        method: Name of the algorithm.
    """
    shapes = zip(factors, tensor_shapes(structure), strict=True)
    weights = tuple(stored(factor, dtype).cpu().reshape(shape).contiguous() for factor, shape in shapes)
    dense = merge(structure, weights, layer.stage).to(weight.device)
    return Factors(structure, weights, relative_difference(weight, dense), method)


def with_excess(factors: Factors, weight: Tensor, claimed: float | None, least: float) -> Factors:
    """Return factors with a bound on their excess error, rounding to the stored dtype included.

    Args:
        factors: The factors.
        weight: The weight.
        claimed: Bound on the excess before rounding; None if there is none.
        least: Lower bound on the squared error of the best factors.
    """
    energy = float(weight.double().square().sum())
    floor = attainable(weight.dtype, energy)
    return replace(factors, excess=stored_excess(claimed, factors.error**2 * energy, least, floor))


def with_output_error(factors: Factors, layer: Layer, weight: Tensor, moments: Moments) -> Factors:
    """Return factors with the relative error of the outputs for inputs with given moments."""
    (second,) = moments.second
    energy = output_energy(weight, second)
    missed = weight - factors.dense(layer.stage).to(weight.device)
    return replace(factors, output_error=sqrt(output_energy(missed, second) / energy) if energy else 0.0)


def spectrum_of(values: Tensor, shape: tuple[int, int], weight: Tensor, energy: float | None = None) -> Spectrum:
    """Return a spectrum, scaled to an energy if one is given.

    Args:
        values: Singular values, descending, shape (k,), or (blocks, k) of a block-diagonal matrix.
        shape: Shape of the matrix.
        weight: The weight, whose dtype determines the precision.
        energy: Sum of squares of the scaled values.
    """
    found = values.double().cpu()
    total = float(found.square().sum())
    if energy is not None and total:
        found = found * sqrt(energy / total)
    return Spectrum.of_blocks(found.reshape(-1, found.shape[-1]), shape, torch.finfo(compute_dtype(weight.dtype)).eps)

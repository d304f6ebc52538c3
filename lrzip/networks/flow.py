"""Kinds of convolutions from the widths that flow between a weight and its neighbors."""

from lrzip.core.layers import Layer, TensorSpec
from lrzip.networks.neighbors import Neighbor, Neighbors


def norm_of_transposed(module: str, weight: TensorSpec, neighbors: Neighbors) -> bool:
    """Return whether a norm beside a convolution without bias shows that its weight is stored (in, out, *kernel).

    The norm after it has the width of its outputs. The norm before it has that of its inputs, which only for a grouped
    convolution may also be the first size.
    """
    first, second, *kernel = weight.shape
    if first == second or max(kernel) == 1:
        return False
    after, before = neighbors.norm_after(module), neighbors.norm_before_in_block(module)
    if after in (first, second):
        return after == second
    return before == first and bool(first % second)


def may_be_transposed(layer: Layer, neighbors: Neighbors) -> bool:
    """Return whether the sizes of the convolutions with the numbers before and after fit only a transposed one."""
    first, second, *kernel = layer.weight.shape
    if layer.bias or first == second or max(kernel) == 1 or neighbors.norm_after(layer.module) == first:
        return False
    return any(_links_transposed(layer, neighbors.numbered(layer.module, step), step) for step in (1, -1))


def may_be_grouped(layer: Layer, neighbors: Neighbors) -> bool:
    """Return whether the layer before has several times as many outputs as a convolution has inputs per group."""
    first, second, *kernel = layer.weight.shape
    if max(kernel) == 1:
        return False  # grouped convolutions without a kernel are rare, and shortcuts look like them
    before = neighbors.norm_before(layer.module)
    if before is None:
        previous = neighbors.numbered(layer.module, -1)
        before = (previous.width or previous.weight.shape[0]) if previous else 0
    return _groups(before, first, second)


def _groups(inputs: int, outputs: int, channels: int) -> bool:
    """Return whether sizes are those of a convolution with more than one group."""
    return inputs > channels and inputs % channels == 0 and outputs % (inputs // channels) == 0


def _links_transposed(layer: Layer, other: Neighbor | None, step: int) -> bool:
    """Return whether sizes link two weights stored (in, out, *kernel), and not two stored (out, in, *kernel)."""
    if other is None or len(other.weight.shape) != len(layer.weight.shape) or other.bias:
        return False
    if other.weight.shape[0] == other.weight.shape[1]:
        return False
    before, after = (layer.weight, other.weight) if step > 0 else (other.weight, layer.weight)
    return before.shape[1] == after.shape[0] and before.shape[0] != after.shape[1]

"""Moments of the inputs of layers, observed in as many passes over the calibration data as memory requires."""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from lrzip.calibration.subjects import Subject
from lrzip.core.activations import Inputs
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Moments, Sums

_ITEMSIZE = 8


def observe_in_passes(
    subject: Subject,
    layers: Sequence[Layer],
    batches: Sequence[Arguments],
    *,
    positions: int,
    memory: int,
    masks: Sequence[Tensor | None] = (),
) -> dict[str, Moments]:
    """Return the moments of the inputs of layers by name, for the layers that are reached.

    Args:
        subject: The network or program to run.
        layers: Layers to observe.
        batches: Arguments of the runs.
        positions: Approximate number of spatial positions per layer to use.
        memory: Bytes that second moments may take at a time.
        masks: For each batch the positions that count, or None for all; empty without masks.
    """
    found: dict[str, Moments] = {}
    for part in _parts(layers, memory):
        found |= moments_of(subject, part, batches, positions, masks)
    return found


def moments_of(
    subject: Subject,
    layers: Sequence[Layer],
    batches: Sequence[Arguments],
    positions: int,
    masks: Sequence[Tensor | None] = (),
) -> dict[str, Moments]:
    """Return the moments of the inputs of layers by name, for the layers that are reached, in one pass."""
    sums: dict[str, Sums] = {}
    most = max(positions // len(batches), 1)
    by_name = {layer.name: layer for layer in layers}

    def observer(mask: Tensor | None, name: str, inputs: Inputs) -> None:
        layer = by_name[name]
        if name not in sums:
            sums[name] = Sums(layer.input_size, layer.groups, diagonal=layer.kind.is_indexed)
        sums[name].add(inputs.masked(mask), most=most)

    if any(mask is not None for mask in masks):
        for batch, mask in zip(batches, masks, strict=True):
            subject.observe(layers, [batch], partial(observer, mask))
    else:
        subject.observe(layers, batches, partial(observer, None))
    return {name: found.moments() for name, found in sums.items()}


def _parts(layers: Sequence[Layer], memory: int) -> Iterator[list[Layer]]:
    """Yield the layers in parts whose second moments fit into memory together; a part has at least one layer."""
    part: list[Layer] = []
    taken = 0
    for layer in layers:
        nbytes = _ITEMSIZE * layer.groups * layer.input_size ** (1 if layer.kind.is_indexed else 2)
        if part and taken + nbytes > memory:
            yield part
            part, taken = [], 0
        part.append(layer)
        taken += nbytes
    if part:
        yield part

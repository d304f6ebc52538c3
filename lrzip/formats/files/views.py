"""Tensors that share stored elements: overlapping views of one storage.

Views of one storage that use different elements, such as the parameters of a flat buffer or the slices of a fused
projection, are independent of each other.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
import torch

_EXACT_LIMIT = 1 << 28  # bytes of a range within which elements are compared one by one


class View(NamedTuple):
    """A strided view of a storage; strides and offset are in elements.

    Attributes:
        storage: Identity of the storage.
        itemsize: Size in bytes of an element.
        offset: First element.
        shape: Shape.
        strides: Strides.
    """

    storage: Hashable
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Number of elements from the first to the last one used."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def start(self) -> int:
        """First byte in the storage."""
        return self.offset * self.itemsize

    @property
    def end(self) -> int:
        """Byte after the last one used."""
        return (self.offset + self.span) * self.itemsize


@dataclass
class _Cluster:
    """Views whose ranges of bytes touch each other, directly or through others."""

    names: list[str]
    end: int


def shared_views(views: Mapping[str, View]) -> dict[str, str]:
    """Return, for each tensor that shares stored elements with another one, the name of the other.

    Args:
        views: Tensors with at least one element, by name.
    """
    return {
        name: next(other for other in names if other != name)
        for cluster in _clusters(views)
        for names in _overlapping(cluster, views)
        for name in names
    }


def _clusters(views: Mapping[str, View]) -> Sequence[Sequence[str]]:
    """Return the groups of at least two tensors whose ranges of bytes overlap."""
    order = {name: place for place, name in enumerate(views)}
    storages: dict[Hashable, list[str]] = {}
    for name, view in views.items():
        storages.setdefault(view.storage, []).append(name)
    found: list[_Cluster] = []
    for names in storages.values():
        last: _Cluster | None = None
        for name in sorted(names, key=lambda name: views[name].start):
            if last and views[name].start < last.end:
                last.names.append(name)
                last.end = max(last.end, views[name].end)
            else:
                last = _Cluster([name], views[name].end)
                found.append(last)
    return [sorted(cluster.names, key=order.__getitem__) for cluster in found if len(cluster.names) > 1]


def _overlapping(names: Sequence[str], views: Mapping[str, View]) -> Sequence[Sequence[str]]:
    """Return the groups of tensors among those with overlapping ranges that share an element.

    Interleaved views, such as slices of columns, are compared element by element, if that takes little memory.
    """
    start = min(views[name].start for name in names)
    nbytes = max(views[name].end for name in names) - start
    size = views[names[0]].itemsize
    is_aligned = all(views[name].itemsize == size and (views[name].start - start) % size == 0 for name in names)
    if not is_aligned or nbytes > _EXACT_LIMIT:
        return [names]
    owners = torch.full((nbytes // size,), -1, dtype=torch.int32)
    groups: dict[int, set[int]] = {}
    for place, name in enumerate(names):
        view = views[name]
        own = owners.as_strided(view.shape, view.strides, view.offset - start // size)
        before = set(numpy.unique(own.numpy()).tolist()) - {-1}
        group = set().union(*(groups[other] for other in before), {place})
        groups |= dict.fromkeys(group, group)
        own.fill_(place)
    distinct = {id(group): group for group in groups.values() if len(group) > 1}
    return [[names[place] for place in sorted(group)] for group in distinct.values()]

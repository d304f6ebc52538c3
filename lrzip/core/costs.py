"""Costs of running layers and networks: multiply-accumulates and seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import add
from typing import Any, NamedTuple

from lrzip.core.structure import Chain, Reshape, Select, Stage, Structure, Sum


@dataclass(frozen=True)
class Latency:
    """Median seconds of one run of the dense and of the factorized layer or network, timed alternately."""

    dense: float
    factorized: float

    @property
    def speedup(self) -> float:
        """Time of the dense one divided by that of the factorized one."""
        return self.dense / self.factorized

    def to_dict(self) -> dict[str, float]:
        """Return both times in milliseconds, as JSON documents have them."""
        return {"dense_ms": round(1e3 * self.dense, 4), "factorized_ms": round(1e3 * self.factorized, 4)}


@dataclass(frozen=True)
class Timing:
    """Latency of a program.

    Attributes:
        network: Of the program.
        layers: Of its layers by name, where they can be timed separately.
    """

    network: Latency
    layers: Mapping[str, Latency]


@dataclass(frozen=True)
class LayerCost:
    """Costs of a layer before and after its replacement: multiply-accumulates in one run, and latency if measured."""

    macs_before: int
    macs_after: int
    latency: Latency | None

    def to_dict(self) -> dict[str, Any]:
        """Return the costs as JSON documents have them."""
        macs = {"macs_before": self.macs_before, "macs_after": self.macs_after}
        return macs | ({"latency": self.latency.to_dict()} if self.latency else {})


@dataclass(frozen=True)
class Costs:
    """Costs of a network before and after compression, and of each replaced layer by name."""

    macs_before: int
    macs_after: int
    layers: Mapping[str, LayerCost]
    latency: Latency | None

    def timed(self, timing: Timing | None) -> "Costs":
        """Return the costs with measured latencies."""
        if timing is None:
            return self
        layers = {name: replace(cost, latency=timing.layers.get(name)) for name, cost in self.layers.items()}
        return replace(self, layers=layers, latency=timing.network)

    def to_dict(self) -> dict[str, Any]:
        """Return the totals as JSON documents have them."""
        return LayerCost(self.macs_before, self.macs_after, self.latency).to_dict()


@dataclass(frozen=True)
class Positions:
    """Numbers of spatial positions at which a layer is applied, over all of its calls in a run.

    Attributes:
        counts: (2^d,) for d spatial axes. Bit a of an index says whether axis a has the size of the layer's outputs
            rather than that of its inputs; so the first count is that of the inputs, and the last that of the outputs.
    """

    counts: tuple[int, ...]

    @classmethod
    def of(cls, repeats: int, inputs: Sequence[int] = (), outputs: Sequence[int] = ()) -> "Positions":
        """Return the positions of one call.

        Args:
            repeats: Number of inputs: the batch size, times all axes that are not channels of a linear layer.
            inputs: Sizes of the input along its d spatial axes.
            outputs: Sizes of the output along them.
        """
        axes = range(len(inputs))
        masks = range(1 << len(inputs))
        sizes = [[(outputs if mask >> axis & 1 else inputs)[axis] for axis in axes] for mask in masks]
        return cls(tuple(repeats * prod(each) for each in sizes))

    @classmethod
    def of_call(cls, layer: Stage, inputs: Sequence[int], outputs: Sequence[int]) -> "Positions":
        """Return the positions of one call of a layer.

        Args:
            layer: The layer as a single stage.
            inputs: Shape of its input, batched or not.
            outputs: Shape of its output.
        """
        axes = layer.kind.spatial
        if axes:
            return cls.of(prod(inputs[: len(inputs) - 1 - axes]), inputs[-axes:], outputs[-axes:])
        features = 1 if layer.kind.is_indexed else layer.inputs // layer.groups
        return cls.of(prod(inputs) // features)

    def plus(self, other: "Positions") -> "Positions":
        """Return the positions of both together."""
        return Positions(tuple(map(add, self.counts, other.counts)))

    def at(self, strided: Sequence[bool]) -> int:
        """Return the number of positions where some axes have been strided over already."""
        return self.counts[sum(1 << axis for axis, done in enumerate(strided) if done)]


def macs(structure: Structure, positions: Positions | None) -> int:
    """Return the multiply-accumulates of a structure in a run; zero for a layer that does not run.

    A weight is multiplied once at each position of its stage's outputs, or of its inputs for transposed convolutions.
    Embeddings multiply nothing.
    """
    if positions is None:
        return 0
    axes = len(positions.counts).bit_length() - 1
    return _macs(structure, positions, _Place((False,) * axes))[0]


class _Place(NamedTuple):
    """Where in a structure values are: the axes that have been strided over, and rows of features per position."""

    strided: tuple[bool, ...]
    rows: int = 1


def _macs(structure: Structure, positions: Positions, place: _Place) -> tuple[int, _Place]:
    if isinstance(structure, Reshape):
        return 0, place._replace(rows=prod(structure.shape[:-1]))
    if isinstance(structure, Select):
        return 0, place
    if isinstance(structure, Chain):
        total = 0
        for part in structure.parts:
            count, place = _macs(part, positions, place)
            total += count
        return total, place
    if isinstance(structure, Sum):
        found = [_macs(branch, positions, place) for branch in structure.branches]
        return sum(count for count, _ in found), found[0][1]
    after = tuple(done or takes for done, takes in zip(place.strided, structure.axes, strict=True))
    times = positions.at(place.strided if structure.kind.is_transposed_convolution else after)
    count = 0 if structure.kind.is_indexed else prod(structure.shape) * times * place.rows
    return count, place._replace(strided=after)

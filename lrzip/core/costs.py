"""Costs of one run of layers and networks: multiply-accumulates and seconds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
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
        """Return both times in milliseconds, as they appear in JSON documents."""
        return {"dense_ms": round(1e3 * self.dense, 4), "factorized_ms": round(1e3 * self.factorized, 4)}


@dataclass(frozen=True)
class Timing:
    """Latencies of a program and its layers.

    Attributes:
        network: Latency of the program.
        layers: Latencies of layers by name, where they can be timed separately.
    """

    network: Latency
    layers: Mapping[str, Latency]


@dataclass(frozen=True)
class LayerCost:
    """Costs of a layer before and after its replacement: multiply-accumulates of a run, and latency if measured.

    Multiply-accumulates that could not be counted are None.
    """

    macs_before: int | None
    macs_after: int | None
    latency: Latency | None

    def to_dict(self) -> dict[str, Any]:
        """Return the costs as they appear in JSON documents."""
        macs = {"macs_before": self.macs_before, "macs_after": self.macs_after}
        return macs | ({"latency": self.latency.to_dict()} if self.latency else {})


@dataclass(frozen=True)
class Costs:
    """Costs of a network before and after compression, and of each replaced layer by name.

    Attributes:
        macs_before: Multiply-accumulates of the dense network, None if they could not be counted.
        macs_after: Those of the compressed network.
        layers: Costs of each replaced layer.
        latency: Latency of the network, if measured.
        inputs: Shape of each input of the run, by name.
        samples: Number of samples in this run, of which the multiply-accumulates are those of one.
        not_counted: What the multiply-accumulates leave out and why; None if they are complete.
        not_timed: Why there is no latency although it was requested.
    """

    macs_before: int | None
    macs_after: int | None
    layers: Mapping[str, LayerCost]
    latency: Latency | None
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    samples: int = 1
    not_counted: str | None = None
    not_timed: str | None = None

    def timed(self, timing: Timing | None) -> "Costs":
        """Return the costs with measured latencies."""
        if timing is None:
            return replace(self, not_timed="the program does not run on random inputs of these shapes")
        layers = {name: replace(cost, latency=timing.layers.get(name)) for name, cost in self.layers.items()}
        return replace(self, layers=layers, latency=timing.network, not_timed=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the totals as they appear in JSON documents."""
        run = {
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "samples": self.samples,
            "not_counted": self.not_counted,
            "not_timed": self.not_timed,
        }
        return LayerCost(self.macs_before, self.macs_after, self.latency).to_dict() | {"run": run}


@dataclass(frozen=True)
class Positions:
    """Numbers of spatial positions at which a layer is applied, over all of its calls in a run.

    Attributes:
        counts: 2^d numbers for d spatial axes. Bit a of an index is set if axis a has the size of the layer's outputs
            instead of that of its inputs. So the first number is that of the inputs, the last one that of the outputs.
            They may be means, of the projections of an attention layer, or shares of one sample.
    """

    counts: tuple[int | Fraction, ...]

    @classmethod
    def of(cls, repeats: int | Fraction, inputs: Sequence[int] = (), outputs: Sequence[int] = ()) -> "Positions":
        """Return the positions of one call.

        Args:
            repeats: Batch size; for linear layers, the product of all axes but that of the channels.
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
        """Return the element-wise sum of both."""
        return Positions(tuple(map(add, self.counts, other.counts)))

    def shared(self, samples: int) -> "Positions":
        """Return the share of one of several samples."""
        return Positions(tuple(Fraction(count, samples) for count in self.counts))

    def at(self, strided: Sequence[bool]) -> int | Fraction:
        """Return the number of positions where some axes already have the size of the outputs.

        Args:
            strided: For each spatial axis, whether the layer's stride along it has been applied already.
        """
        return self.counts[sum(1 << axis for axis, done in enumerate(strided) if done)]


@dataclass(frozen=True)
class Multiplications:
    """Multiplications in a run of a network.

    Attributes:
        positions: Positions at which each layer is applied, by layer name; a layer without does not run.
        macs: Multiply-accumulates of all operators; None if nothing could be counted.
        inputs: Shape of each input of the run, by name.
        samples: Number of samples in the run, of which positions and multiply-accumulates are those of one.
        not_counted: What is left out and why; None if everything was counted.
        unknown: Names of layers that may run, at unknown positions.
    """

    positions: Mapping[str, Positions]
    macs: int | None
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    samples: int = 1
    not_counted: str | None = None
    unknown: Collection[str] = ()

    def of_one(self, samples: int) -> "Multiplications":
        """Return the share of one of several samples, provided that the multiply-accumulates divide evenly."""
        if self.macs is None or samples < 1 or self.macs % samples:
            return self
        positions = {name: found.shared(samples) for name, found in self.positions.items()}
        return replace(self, positions=positions, macs=self.macs // samples, samples=samples)


def macs(structure: Structure, positions: Positions | None) -> int:
    """Return the multiply-accumulates of a structure in a run; zero for a layer that does not run.

    Each element of a weight is multiplied once at each position of the outputs of its stage, or of the inputs for
    transposed convolutions. Embeddings have no multiplications.
    """
    if positions is None:
        return 0
    axes = len(positions.counts).bit_length() - 1
    return round(_macs(structure, positions, _Extent((False,) * axes))[0])


class _Extent(NamedTuple):
    """Extent of the values between two parts of a structure.

    Attributes:
        strided: For each spatial axis, whether it has the size of the layer's outputs.
        rows: Rows of features at each position, more than one after a `Reshape`.
    """

    strided: tuple[bool, ...]
    rows: int = 1


def _macs(structure: Structure, positions: Positions, extent: _Extent) -> tuple[int | Fraction, _Extent]:
    if isinstance(structure, Reshape):
        return 0, extent._replace(rows=prod(structure.shape[:-1]))
    if isinstance(structure, Select):
        return 0, extent
    if isinstance(structure, Chain):
        total: int | Fraction = 0
        for part in structure.parts:
            count, extent = _macs(part, positions, extent)
            total += count
        return total, extent
    if isinstance(structure, Sum):
        found = [_macs(branch, positions, extent) for branch in structure.branches]
        return sum(count for count, _ in found), found[0][1]
    after = tuple(done or takes for done, takes in zip(extent.strided, structure.axes, strict=True))
    times = positions.at(extent.strided if structure.kind.is_transposed_convolution else after)
    count = 0 if structure.kind.is_indexed else prod(structure.shape) * times * extent.rows
    return count, extent._replace(strided=after)

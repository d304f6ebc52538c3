"""What layers and networks cost to run: multiply-accumulates and seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Latency:
    """Median seconds of one run, dense and factorized, in turns."""

    dense: float
    factorized: float

    @property
    def speedup(self) -> float:
        """How many times faster the factorized one is."""
        return self.dense / self.factorized

    def to_dict(self) -> dict[str, float]:
        """Return both in milliseconds, as `--json` prints them."""
        return {"dense_ms": round(1e3 * self.dense, 4), "factorized_ms": round(1e3 * self.factorized, 4)}


@dataclass(frozen=True)
class Timing:
    """How long a program takes, and the layers in it by name, where they can be told apart."""

    whole: Latency
    layers: Mapping[str, Latency]


@dataclass(frozen=True)
class LayerCost:
    """What one layer and its chain cost: multiply-accumulates of a run of the network, and time if it was measured."""

    macs_before: int
    macs_after: int
    latency: Latency | None

    def to_dict(self) -> dict[str, Any]:
        """Return the costs as `--json` prints them."""
        macs = {"macs_before": self.macs_before, "macs_after": self.macs_after}
        return macs | ({"latency": self.latency.to_dict()} if self.latency else {})


@dataclass(frozen=True)
class Costs:
    """What a whole network costs before and after, and each layer that is replaced, by name."""

    macs_before: int
    macs_after: int
    layers: Mapping[str, LayerCost]
    latency: Latency | None

    def timed(self, timing: Timing | None) -> "Costs":
        """Return the costs with times."""
        if timing is None:
            return self
        layers = {name: replace(cost, latency=timing.layers.get(name)) for name, cost in self.layers.items()}
        return replace(self, layers=layers, latency=timing.whole)

    def to_dict(self) -> dict[str, Any]:
        """Return the totals as `--json` prints them."""
        return LayerCost(self.macs_before, self.macs_after, self.latency).to_dict()


class Positions(NamedTuple):
    """Where a layer is applied in a run, over all calls: how often each element of its weight is multiplied.

    Attributes:
        inputs: Positions of its inputs, at which the stages before the one with the kernel are applied.
        outputs: Positions of its outputs, at which it is applied itself, and so are all other stages.
    """

    inputs: int
    outputs: int

    def plus(self, other: "Positions") -> "Positions":
        """Return those of more calls."""
        return Positions(self.inputs + other.inputs, self.outputs + other.outputs)

"""Candidates: the layers that rank rules choose ranks for."""

from collections.abc import Callable
from dataclasses import dataclass

from lrzip.core.layers import Layer
from lrzip.core.moments import MeasuredChanges
from lrzip.core.spectrum import Spectrum


@dataclass(frozen=True)
class Candidate:
    """A layer as a rule sees it.

    Attributes:
        layer: The layer.
        max_ranks: The largest rank of each of the decomposition's unfoldings.
        parameters: Elements of the weights of the chain with given ranks, by the decomposition's blueprint.
        spectra: One spectrum per unfolding; empty if the layer's rule reads none.
        fisher: Fisher sensitivity of the layer's outputs; None without a calibration of a network.
        measured: Measured changes of the network's outputs by rank; None if not measured.
    """

    layer: Layer
    max_ranks: tuple[int, ...]
    parameters: Callable[[tuple[int, ...]], int]
    spectra: tuple[Spectrum, ...] = ()
    fisher: float | None = None
    measured: MeasuredChanges | None = None

    def saves(self, ranks: tuple[int, ...]) -> bool:
        """Tell whether the chain is smaller than the layer."""
        return self.parameters(ranks) < self.layer.weight.numel

    @property
    def break_even_rank(self) -> int:
        """The largest rank that still saves parameters, with all ranks equal; 0 where none does."""
        return self.largest_rank(self.layer.weight.numel - 1)

    def equal(self, rank: int) -> tuple[int, ...]:
        """Return the same rank in all places, or the largest where that is less."""
        return tuple(min(rank, most) for most in self.max_ranks)

    def largest_rank(self, parameters: int) -> int:
        """Return the largest rank, the same in all places, with at most so many parameters; 0 where none has."""
        low, high = 0, max(self.max_ranks)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.parameters(self.equal(middle)) <= parameters
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

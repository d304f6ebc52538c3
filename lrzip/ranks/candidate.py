"""Candidates: the layers that rank rules choose ranks for."""

from collections.abc import Callable
from dataclasses import dataclass

from lrzip.core.layers import Group, Layer
from lrzip.core.moments import MeasuredChanges
from lrzip.core.spectrum import Spectrum


@dataclass(frozen=True)
class Pick:
    """The choice for one layer.

    Attributes:
        decomposition: Registered name of the decomposition.
        ranks: Its ranks.
    """

    decomposition: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A layer, a decomposition of it, and the properties that determine the choice of ranks.

    Attributes:
        layer: The layer.
        max_ranks: Largest rank of each unfolding of the decomposition.
        parameters: Function of the ranks that returns the number of elements of the factors.
        spectra: One spectrum per unfolding; empty if the layer's rule reads none.
        fisher: Fisher sensitivity of the layer's outputs; None without a calibration of a network.
        measured: Measured changes of the network's outputs by rank; None if not measured.
        decomposition: Registered name of the decomposition.
        others: The same layer by other decompositions, among which rules choose as well.
    """

    layer: Layer
    max_ranks: tuple[int, ...]
    parameters: Callable[[tuple[int, ...]], int]
    spectra: tuple[Spectrum, ...] = ()
    fisher: float | None = None
    measured: MeasuredChanges | None = None
    decomposition: str = "svd"
    others: tuple["Candidate", ...] = ()

    @property
    def alternatives(self) -> tuple["Candidate", ...]:
        """The candidate and its others."""
        return (self, *self.others)

    def by(self, decomposition: str) -> "Candidate":
        """Return the alternative with a decomposition."""
        return next(each for each in self.alternatives if each.decomposition == decomposition)

    @property
    def group(self) -> Group:
        """The layers that the ranks are chosen for: the one layer."""
        return Group((self.layer,))

    def saves(self, ranks: tuple[int, ...]) -> bool:
        """Return whether the factors have fewer elements than the dense weight."""
        return self.parameters(ranks) < self.layer.weight.numel

    @property
    def break_even_rank(self) -> int:
        """The largest rank, equal along all unfoldings, that still saves parameters; 0 if there is none."""
        return self.largest_rank(self.layer.weight.numel - 1)

    def equal(self, rank: int) -> tuple[int, ...]:
        """Return the same rank for all unfoldings, limited to the largest rank of each."""
        return tuple(min(rank, largest) for largest in self.max_ranks)

    def largest_rank(self, parameters: int) -> int:
        """Return the largest rank, equal along all unfoldings, with at most `parameters` elements; 0 if none."""
        low, high = 0, max(self.max_ranks)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.parameters(self.equal(middle)) <= parameters
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

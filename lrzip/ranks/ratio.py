"""Divide the parameters of each layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrzip.ranks import Candidate, Choice, Context, check


@dataclass(frozen=True)
class Ratio:
    """The largest rank with at most 1 / ratio of the layer's parameters."""

    ratio: float
    needs_spectra = False
    unit = None

    def __post_init__(self) -> None:
        check("ratio", self.ratio, ok=self.ratio > 1, range_="above 1")

    def __str__(self) -> str:
        return f"ratio {self.ratio:g}"

    def settled(self, candidate: Candidate) -> bool:
        """Return True: no singular value is looked at."""
        del candidate
        return True

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the ranks by layer name, without the layers of which rank 1 is already too large."""
        del context
        ranks = {
            candidate.layer.name: (candidate.largest_rank(int(candidate.layer.weight.numel / self.ratio)), candidate)
            for candidate in candidates
        }
        return Choice({name: candidate.equal(rank) for name, (rank, candidate) in ranks.items() if rank})

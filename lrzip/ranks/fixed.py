"""The rank rule `rank`: one rank for all layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrzip.ranks import Candidate, Choice, Context, check
from lrzip.ranks.alternatives import most_accurate


@dataclass(frozen=True)
class FixedRank:
    """The same rank for all layers and unfoldings, limited to their largest ranks.

    Attributes:
        rank: The rank, a whole number above 0.
    """

    rank: float
    needs_spectra = False
    unit = None

    def __post_init__(self) -> None:
        check("rank", self.rank, ok=self.rank >= 1 and self.rank == int(self.rank), range_="a whole number above 0")

    def __str__(self) -> str:
        return f"rank {self.rank:g}"

    def settled(self, candidate: Candidate) -> bool:
        """Return True: the rule does not read singular values."""
        del candidate
        return True

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the rank for each layer."""
        return most_accurate(candidates, lambda item: item.equal(int(self.rank)), context.objective.loss)

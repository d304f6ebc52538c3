"""The rank rule `ratio`: divide the parameters of each layer by a number."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrzip.ranks import Candidate, Choice, Context, check
from lrzip.ranks.alternatives import most_accurate


@dataclass(frozen=True)
class Ratio:
    """The largest rank with at most 1 / ratio of the layer's parameters, equal along all unfoldings.

    Attributes:
        ratio: The divisor, above 1.
    """

    ratio: float
    needs_spectra = False
    unit = None

    def __post_init__(self) -> None:
        check("ratio", self.ratio, ok=self.ratio > 1, range_="above 1")

    def __str__(self) -> str:
        return f"ratio {self.ratio:g}"

    def settled(self, candidate: Candidate) -> bool:
        """Return True: the rule does not read singular values."""
        del candidate
        return True

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the largest ranks; layers whose factors of rank 1 are too large have none."""

        def ranks_of(item: Candidate) -> tuple[int, ...] | None:
            rank = item.largest_rank(int(item.layer.weight.numel / self.ratio))
            return item.equal(rank) if rank else None

        return most_accurate(candidates, ranks_of, context.objective.loss)

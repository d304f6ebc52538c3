"""The rank rule `energy`: keep a share of the energy of each layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrzip.ranks import Candidate, Choice, Context, check
from lrzip.ranks.alternatives import smallest


@dataclass(frozen=True)
class Energy:
    """The smallest ranks that keep a share of Σσ² in every unfolding.

    Attributes:
        share: The share, above 0 and at most 1.
    """

    share: float
    needs_spectra = True
    unit = None

    def __post_init__(self) -> None:
        check("energy", self.share, ok=0 < self.share <= 1, range_="above 0 and at most 1")

    def __str__(self) -> str:
        return f"energy {self.share:g}"

    def settled(self, candidate: Candidate) -> bool:
        """Return whether exact singular values could not change any rank."""
        return all(spectrum.settles(self.share) for spectrum in candidate.spectra)

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the smallest ranks that keep the share."""
        del context
        return smallest(
            candidates, lambda item: tuple(spectrum.rank_for_energy(self.share) for spectrum in item.spectra)
        )

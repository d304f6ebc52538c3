"""Keep what stands out from noise."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrzip.linalg.vbmf import noise_rank
from lrzip.ranks import Candidate, Choice, Context


@dataclass(frozen=True)
class VBMF:
    """The number of singular values above white noise in every unfolding, by variational Bayes; at least 1."""

    needs_spectra = True
    unit = None

    def __str__(self) -> str:
        return "vbmf"

    def settled(self, candidate: Candidate) -> bool:
        """Tell whether singular values are exact: rounding in a float32 Gram matrix looks like signal or like no noise.

        By its squares, an exact rank of 7 in (300, 100) is 53.
        """
        return not any(spectrum.slack for spectrum in candidate.spectra)

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the ranks by layer name."""
        del context
        ranks = {
            candidate.layer.name: tuple(
                max(noise_rank(spectrum.values, spectrum.shape).rank, 1) for spectrum in candidate.spectra
            )
            for candidate in candidates
        }
        return Choice(ranks)

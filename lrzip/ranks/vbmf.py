"""The rank rule `vbmf`: keep the singular values above noise."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrzip.linalg.vbmf import noise_rank
from lrzip.ranks import Candidate, Choice, Context
from lrzip.ranks.alternatives import smallest


@dataclass(frozen=True)
class VBMF:
    """The number of singular values above white noise in every unfolding; at least 1.

    It is estimated by empirical variational Bayes matrix factorization (Nakajima et al. 2013).
    """

    needs_spectra = True
    unit = None

    def __str__(self) -> str:
        return "vbmf"

    def settled(self, candidate: Candidate) -> bool:
        """Return whether singular values are exact.

        Rounding in a float32 Gram matrix is mistaken for signal: a (300, 100) matrix of rank 7 is estimated as 53.
        """
        return not any(spectrum.slack for spectrum in candidate.spectra)

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the estimated ranks."""
        del context
        return smallest(candidates, _noise_ranks)


def _noise_ranks(candidate: Candidate) -> tuple[int, ...]:
    return tuple(max(noise_rank(spectrum.values, spectrum.shape).rank, 1) for spectrum in candidate.spectra)

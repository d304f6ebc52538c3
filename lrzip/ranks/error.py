"""The rank rule `error`: fixed precision, the smallest ranks within a bound on the relative error of each layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from lrzip.core.errors import UsageError
from lrzip.core.spectrum import Spectrum
from lrzip.ranks import Candidate, Choice, Context, check, number_of
from lrzip.ranks.alternatives import smallest

FROBENIUS, SPECTRAL = "frobenius", "spectral"
# An error that is met exactly must count as met, in spite of rounding in sums of squares.
_ROUNDING = 1e-12

Errors = NDArray[np.float64]


@dataclass(frozen=True)
class Error:
    """The smallest ranks with ‖W − W′‖ ≤ error · ‖W‖ (the fixed-precision problem of Halko, Martinsson & Tropp 2011).

    The operator norm is that of the matrix that the decomposition approximates; for groups, of the block-diagonal one.
    With several unfoldings, the squared Frobenius error is at most the sum of the squared tails of all of them (De
    Lathauwer et al. 2000, property 10). It bounds the operator norm, too, which then is that of the first unfolding.
    Among the ranks that this bound allows, those with the fewest parameters are chosen.

    Errors are those of the best factors before they are rounded to their dtype; with a calibration, those of outputs.

    Attributes:
        error: The bound, above 0 and below 1.
        norm: `frobenius` or `spectral`.
    """

    error: float
    norm: str = FROBENIUS
    needs_spectra = True
    unit = None

    def __post_init__(self) -> None:
        check("error", self.error, ok=0 < self.error < 1, range_="above 0 and below 1")

    @classmethod
    def parse(cls, text: str) -> "Error":
        """Return the rule that a text names: `0.1`, or `spectral:0.1` for the operator norm.

        Raises:
            UsageError: The text is malformed, or the number out of range.
        """
        norm, colon, number = text.rpartition(":")
        error = number_of(number)
        if error is None or (colon and norm not in (FROBENIUS, SPECTRAL)):
            raise UsageError(f"`error` needs a number, such as 0.1, or spectral:0.1 for operator norms, got `{text}`.")
        return cls(error, norm or FROBENIUS)

    def __str__(self) -> str:
        return f"error {f'{SPECTRAL}:' if self.norm == SPECTRAL else ''}{self.error:g}"

    def settled(self, candidate: Candidate) -> bool:
        """Return whether exact singular values could not change any rank."""
        if not any(spectrum.slack for spectrum in candidate.spectra):
            return True
        if len(candidate.spectra) > 1:
            return False
        (spectrum,) = candidate.spectra
        (rank,) = self._ranks(candidate)
        errors, limit = self._errors(candidate)[0], self._limit(candidate)
        # A sum of squares is off by the slack per value in it, and a single square by the slack at most.
        margin = spectrum.slack * (rank if self.norm == FROBENIUS else 1 + self.error**2)
        return bool(errors[rank - 1] + margin <= limit and (rank == 1 or errors[rank - 2] - margin > limit))

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the smallest ranks within the bound."""
        del context
        return smallest(candidates, self._ranks)

    def _ranks(self, candidate: Candidate) -> tuple[int, ...]:
        errors, limit = self._errors(candidate), self._limit(candidate) * (1 + _ROUNDING)
        if len(errors) == 1:
            return (1 + int((errors[0] > limit).sum()),)
        return min(_combinations(errors, limit), key=lambda ranks: (candidate.parameters(ranks), ranks))

    def _errors(self, candidate: Candidate) -> list[Errors]:
        """Return the squared errors of ranks 1, 2, … of each unfolding, whose sum bounds that of the layer."""
        if self.norm == SPECTRAL and len(candidate.spectra) == 1:
            return [np.append(candidate.spectra[0].operator_norms[1:].square().numpy(), 0.0)]
        return [spectrum.squared_tails.numpy() for spectrum in candidate.spectra]

    def _limit(self, candidate: Candidate) -> float:
        """Return the largest squared error."""
        first: Spectrum = candidate.spectra[0]
        return self.error**2 * (first.total if self.norm == FROBENIUS else first.spectral_norm**2)


def _combinations(errors: Sequence[Errors], limit: float) -> list[tuple[int, ...]]:
    """Return the ranks whose errors add up to at most a limit, with the smallest last rank for each of the others."""
    *others, last = errors
    found = []
    for ranks in product(*(range(1, len(each) + 1) for each in others)):
        left = limit - sum(float(each[rank - 1]) for each, rank in zip(others, ranks, strict=True))
        if left >= 0:
            found.append((*ranks, 1 + int((last > left).sum())))
    return found

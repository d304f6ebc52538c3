"""What a rank loses, as singular values predict it, and how the losses of layers add up."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from math import fsum

import numpy as np
from numpy.typing import NDArray

from lrzip.core.errors import UnknownName, UsageError
from lrzip.core.spectrum import Spectrum
from lrzip.ranks.candidate import Candidate
from lrzip.ranks.knapsack import Allocation, Options
from lrzip.ranks.minimize_maximum import minimize_maximum
from lrzip.ranks.minimize_sum import minimize_sum

Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """A prediction of what is lost.

    Attributes:
        name: What options call it.
        losses: Losses (k,) of the ranks from 1 to k of one unfolding of a candidate, by its spectrum of k singular
            values; non-increasing, and 0 at rank k.
        by_maximum: Whether the worst layer counts, rather than all of them together.
        measured: Whether it takes a measurement of each layer.
    """

    name: str
    losses: Callable[[Spectrum, Candidate], Losses]
    by_maximum: bool = False
    measured: bool = False

    def loss(self, candidate: Candidate, ranks: tuple[int, ...]) -> float | None:
        """Return the loss of a candidate at given ranks, one per unfolding; None if it has no spectra."""
        if not candidate.spectra:
            return None
        pairs = zip(candidate.spectra, ranks, strict=True)
        return self.total(float(self.losses(spectrum, candidate)[rank - 1]) for spectrum, rank in pairs)

    def joint(self, candidate: Candidate) -> Losses:
        """Return the losses of all combinations of ranks of a layer's unfoldings, an axis each.

        They add up as those of layers do. Of the energy of Tucker's unfoldings, that bounds what is lost from above.
        """
        combine = np.maximum if self.by_maximum else np.add
        return reduce(combine.outer, [self.losses(spectrum, candidate) for spectrum in candidate.spectra])

    def total(self, losses: Iterable[float]) -> float:
        """Return the loss of several layers together."""
        return max(losses, default=0.0) if self.by_maximum else fsum(losses)

    def allocate(self, items: list[Options], budget: int) -> Allocation:
        """Return the choice with the least loss within a budget."""
        return (minimize_maximum if self.by_maximum else minimize_sum)(items, budget)


def _energy(spectrum: Spectrum) -> Losses:
    """Return ‖W − W_r‖²: the sum of the squares that a rank leaves out."""
    squares: Losses = spectrum.values.square().numpy()
    return np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)


def _relative_energy(spectrum: Spectrum) -> Losses:
    """Return ‖W − W_r‖² / ‖W‖²; nothing is lost of a zero matrix."""
    return _energy(spectrum) / (spectrum.total or 1.0)


def _log_energy(spectrum: Spectrum) -> Losses:
    """Return −log of the share of the energy that is kept: the sum over layers is that of the product of shares."""
    return -np.log1p(-_relative_energy(spectrum))


def _scaled_log_energy(spectrum: Spectrum) -> Losses:
    """Return ‖W‖ · log-energy: large weights count more, as for energy, but none is given up altogether."""
    return spectrum.frobenius_norm * _log_energy(spectrum)


def _fisher(spectrum: Spectrum, candidate: Candidate) -> Losses:
    """Return √(influence · ‖WX‖²) · log-energy of outputs: what the network's outputs would lose with all of a layer's.

    The root makes up for what layers in a row have in common: less is lost than each of them alone predicts.
    """
    if candidate.fisher is None:
        raise UsageError("`--objective fisher` takes a calibration of a network: `--model` and `--calibrate`.")
    return float(np.sqrt(candidate.fisher)) * _scaled_log_energy(spectrum)


def _sensitivity(spectrum: Spectrum, candidate: Candidate) -> Losses:
    """Return E‖Δz‖² of the network's outputs z, measured at some ranks, and between them by the energy that is lost.

    Logarithms are interpolated; beyond what was measured, outputs change in proportion to the energy.
    """
    if candidate.measured is None:
        raise UsageError(
            "`--objective sensitivity` measures a network: give `--model`, and to `--calibrate` examples for it."
        )
    lost = _relative_energy(spectrum)
    known = lost[np.array(candidate.measured.ranks, dtype=np.int64) - 1][::-1]
    changes = np.maximum.accumulate(candidate.measured.changes[::-1])
    usable = (known > 0) & (changes > 0)
    losses = np.zeros_like(lost)
    if usable.any():
        x, y = np.log(known[usable]), np.log(changes[usable])
        at = np.log(lost[lost > 0])
        losses[lost > 0] = np.exp(np.interp(at, x, y) + at - np.clip(at, x[0], x[-1]))
    return losses


def _operator_norm(spectrum: Spectrum) -> Losses:
    """Return ‖W − W_r‖₂ / ‖W‖₂ = σ_{r+1} / σ₁ (Liebenwein et al. 2021)."""
    values: Losses = spectrum.values.numpy()
    return np.append(values[1:], 0.0) / (values[0] or 1.0)


def _by_spectrum(losses: Callable[[Spectrum], Losses]) -> Callable[[Spectrum, Candidate], Losses]:
    """Return losses that depend on the singular values alone, in the signature of `Objective.losses`."""
    return lambda spectrum, _candidate: losses(spectrum)


OBJECTIVES: Mapping[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("relative-energy", _by_spectrum(_relative_energy)),
        Objective("energy", _by_spectrum(_energy)),
        Objective("log-energy", _by_spectrum(_log_energy)),
        Objective("scaled-log-energy", _by_spectrum(_scaled_log_energy)),
        Objective("fisher", _fisher),
        Objective("sensitivity", _sensitivity, measured=True),
        Objective("operator-norm", _by_spectrum(_operator_norm), by_maximum=True),
    )
}
DEFAULT_OBJECTIVE = "scaled-log-energy"
CALIBRATED_OBJECTIVE = "fisher"
"""The default where there is a calibration of a network."""


def objective_of(name: str) -> Objective:
    """Return the objective of a name.

    Raises:
        UnknownName: There is none.
    """
    if name not in OBJECTIVES:
        raise UnknownName(f"Unknown objective `{name}`. Choose one of: {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]

"""Objectives: predictions of the loss of each rank from singular values, and how the losses of layers combine."""

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
    """A prediction of the loss of accuracy that a low rank causes.

    Attributes:
        name: Name in options.
        losses: Function of the spectrum of one unfolding, with k singular values, and of its candidate that returns
            the losses of ranks 1 to k, shape (k,), float64; non-increasing, and 0 at rank k.
        by_maximum: Whether losses combine by their maximum instead of their sum.
        measured: Whether it needs measured changes of the network's outputs.
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
        """Return the losses of all combinations of ranks of a candidate, with one axis per unfolding.

        The losses of unfoldings combine as those of layers. For the energy of Tucker's unfoldings, the sum is an upper
        bound on the error of the truncated HOSVD (De Lathauwer et al. 2000, property 10).
        """
        combine = np.maximum if self.by_maximum else np.add
        return reduce(combine.outer, [self.losses(spectrum, candidate) for spectrum in candidate.spectra])

    def total(self, losses: Iterable[float]) -> float:
        """Return the combined loss of several layers or unfoldings."""
        return max(losses, default=0.0) if self.by_maximum else fsum(losses)

    def allocate(self, items: list[Options], budget: int) -> Allocation:
        """Return the choice of options with the least combined loss within a budget."""
        return (minimize_maximum if self.by_maximum else minimize_sum)(items, budget)


def _energy(spectrum: Spectrum) -> Losses:
    """Return ‖W − W_r‖_F² = Σ_{i>r} σᵢ²."""
    squares: Losses = spectrum.values.square().numpy()
    return np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)


def _relative_energy(spectrum: Spectrum) -> Losses:
    """Return ‖W − W_r‖_F² / ‖W‖_F²; 0 for a zero matrix."""
    return _energy(spectrum) / (spectrum.total or 1.0)


def _log_energy(spectrum: Spectrum) -> Losses:
    """Return −log(‖W_r‖_F² / ‖W‖_F²): its sum over layers is −log of the product of the shares of energy kept."""
    return -np.log1p(-_relative_energy(spectrum))


def _scaled_log_energy(spectrum: Spectrum) -> Losses:
    """Return ‖W‖_F times log-energy: large weights count more, as for energy, but removing a layer costs infinity."""
    return spectrum.frobenius_norm * _log_energy(spectrum)


def _fisher(spectrum: Spectrum, candidate: Candidate) -> Losses:
    """Return √(F · E‖Wx‖²) times log-energy of the layer's outputs, with the Fisher sensitivity F of the outputs.

    F · E‖Wx‖² estimates the loss of removing all outputs of the layer. The square root corrects for
    information that successive layers share: less is lost than the separate estimates of the layers predict.
    """
    if candidate.fisher is None:
        raise UsageError("`objective=fisher` needs a calibration of a network. Give `model` and `calibrate`.")
    return float(np.sqrt(candidate.fisher)) * _scaled_log_energy(spectrum)


def _sensitivity(spectrum: Spectrum, candidate: Candidate) -> Losses:
    """Return E‖Δz‖² of the network's outputs z, measured at some ranks and interpolated at the others.

    Logarithms are interpolated linearly in the logarithm of the relative energy. Outside the measured ranks, the change
    is proportional to the energy.
    """
    if candidate.measured is None:
        raise UsageError("`objective=sensitivity` measures a network. Give `model`, and its inputs with `calibrate`.")
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
"""Default objective if the network is calibrated."""


def objective_of(name: str) -> Objective:
    """Return the objective with a name.

    Raises:
        UnknownName: There is no such objective.
    """
    if name not in OBJECTIVES:
        raise UnknownName(f"Unknown objective `{name}`. Choose one of: {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]

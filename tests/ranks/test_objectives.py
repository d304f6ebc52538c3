import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lrzip.core.errors import UnknownName, UsageError
from lrzip.core.moments import MeasuredChanges
from lrzip.core.spectrum import Spectrum
from lrzip.ranks import Candidate
from lrzip.ranks.knapsack import Options
from lrzip.ranks.objectives import OBJECTIVES, objective_of
from tests.support.candidates import EPS, calibrated
from tests.support.matrices import slow, zero


def losses_of(name: str, candidate: Candidate) -> NDArray[np.float64]:
    return objective_of(name).losses(candidate.spectra[0], candidate)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("values", [slow(30), zero(30)], ids=["slow", "zero"])
def test_losses_never_grow_with_the_rank_and_end_at_zero(name: str, values: torch.Tensor) -> None:
    measured = MeasuredChanges((4, 9, 20), (5.0, 6.0, 0.1))  # a larger rank may happen to do more harm
    losses = losses_of(name, calibrated(values, (30, 40), fisher=3.0, measured=measured))
    assert losses.shape == (30,)
    assert losses.tolist() == sorted(losses.tolist(), reverse=True)
    assert losses[-1] == 0


def test_objectives_follow_their_definitions() -> None:
    values = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    candidate = calibrated(values, (3, 5), fisher=4.0, measured=MeasuredChanges((1, 2), (0.7, 0.2)))
    found = {name: objective_of(name).loss(candidate, (1,)) for name in OBJECTIVES}
    assert found == pytest.approx(
        {
            "relative-energy": 5 / 21,
            "energy": 5,
            "log-energy": 0.27193371548,  # ln(21 / 16)
            "scaled-log-energy": 1.24615683521,  # √21 ln(21 / 16)
            "fisher": 2.49231367042,  # √4 times that
            "sensitivity": 0.7,
            "operator-norm": 0.5,
        }
    )


def test_measured_changes_are_interpolated_in_the_energy() -> None:
    values = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    lost = losses_of("relative-energy", calibrated(values, (5, 5)))
    found = losses_of("sensitivity", calibrated(values, (5, 5), measured=MeasuredChanges((2, 4), (8.0, 0.5))))
    slope = math.log(8 / 0.5) / math.log(lost[1] / lost[3])
    between = 8 * (lost[2] / lost[1]) ** slope
    assert found == pytest.approx([8 * lost[0] / lost[1], 8, between, 0.5, 0])


def test_a_layer_without_measured_effect_loses_nothing() -> None:
    candidate = calibrated(slow(5), (5, 5), measured=MeasuredChanges((2,), (0.0,)))
    assert losses_of("sensitivity", candidate).tolist() == [0.0] * 5


@pytest.mark.parametrize(("name", "combine"), [("energy", np.add), ("operator-norm", np.maximum)])
def test_losses_of_unfoldings_combine_by_sum_or_maximum(name: str, combine: np.ufunc) -> None:
    spectra = Spectrum(slow(4), (4, 9), EPS), Spectrum(slow(3), (3, 12), EPS)
    candidate = Candidate(calibrated(slow(4), (4, 9)).layer, (4, 3), lambda _: 0, spectra)
    objective = objective_of(name)
    separate = [objective.losses(spectrum, candidate) for spectrum in spectra]
    joint = objective.joint(candidate)
    assert joint.shape == (4, 3)
    assert joint[1, 2] == combine(separate[0][1], separate[1][2])
    assert objective.loss(candidate, (2, 3)) == pytest.approx(float(joint[1, 2]))


def test_a_candidate_without_spectra_has_no_predicted_loss() -> None:
    candidate = Candidate(calibrated(slow(4), (4, 9)).layer, (4,), lambda _: 0)
    assert objective_of("energy").loss(candidate, (2,)) is None


def test_objectives_by_maximum_minimize_the_largest_loss() -> None:
    def option(*losses: float) -> Options:
        return Options.of(np.array([1, 2, 3]), np.array(losses), np.arange(3))

    items = [option(4.0, 3.0, 2.9), option(3.5, 0.0, -1.0)]
    assert objective_of("operator-norm").allocate(items, 3).labels == (1, 0)
    assert objective_of("energy").allocate(items, 3).labels == (0, 1)


@pytest.mark.parametrize(
    ("name", "message"), [("fisher", "needs a calibration"), ("sensitivity", "measures a network")]
)
def test_some_objectives_need_a_calibration(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        losses_of(name, calibrated(slow(5), (5, 5)))


def test_an_unknown_objective_is_refused_with_the_choices() -> None:
    with pytest.raises(UnknownName, match=r"Unknown objective `magic`. Choose one of: relative-energy, energy,"):
        objective_of("magic")

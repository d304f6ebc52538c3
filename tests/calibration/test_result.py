from dataclasses import replace

import torch
from torch import nn

from lrzip.calibration.corrections import Corrections
from lrzip.calibration.result import Calibration
from lrzip.calibration.sequential import Fitted, Job
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.factors import Factors
from tests.support.calibration import calibration_of, layers_of

NETWORK = nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
MODEL = nn.Sequential(*NETWORK.children(), nn.ReLU(), nn.Embedding(3, 4)).eval()
X = torch.rand(16, 24, generator=torch.Generator().manual_seed(0)) + 1


def never(*_: object) -> Factors:
    raise AssertionError


def test_ranks_are_chosen_by_centered_moments_if_means_are_corrected() -> None:
    plain, corrected = calibration_of(NETWORK, X), calibration_of(NETWORK, X, "bias")
    assert plain.planned == plain.statistics
    assert set(corrected.planned) == {"0", "2"}
    for name, moments in corrected.planned.items():
        assert torch.equal(moments.second, corrected.statistics[name].centered.second)


def test_the_default_objective_needs_fisher_sensitivities() -> None:
    calibration = calibration_of(NETWORK, X)
    assert calibration.objective == "fisher"
    without = {name: replace(moments, fisher=None) for name, moments in calibration.statistics.items()}
    assert replace(calibration, statistics=without).objective == "scaled-log-energy"
    assert replace(calibration, statistics={}).objective == "scaled-log-energy"


def test_layers_with_fewer_positions_than_columns_are_scarce() -> None:
    assert calibration_of(NETWORK, X).scarce == {"0": (16, 24)}


def test_only_layers_with_statistics_are_fitted_and_the_others_refitted() -> None:
    jobs: list[Job] = []

    def run(job: Job) -> Fitted:
        jobs.append(job)
        return Fitted()

    layers = layers_of(MODEL)
    assert [layer.name for layer in layers] == ["0", "2", "4"]
    statistics = calibration_of(NETWORK, X).statistics
    corrections = Corrections(sequential=True)
    calibration = Calibration("data", 16, layers, statistics, corrections, run, settings=CalibrationSettings(seed=3))
    calibration.fit(layers[1:2], never)
    replace(calibration, corrections=replace(corrections, refit=True)).fit([layers[2], layers[1]], never)
    assert [[layer.name for layer in job.layers] for job in jobs] == [["2"], ["2", "0"]]
    assert [job.factorize for job in jobs] == [{"2"}, {"2", "4"}]


def test_without_corrections_nothing_is_fitted() -> None:
    assert calibration_of(NETWORK, X).fit(layers_of(NETWORK), never) == Fitted()

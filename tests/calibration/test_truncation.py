"""Measured sensitivity."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.calibration.calibrator import calibrate
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.statistics import moments_of
from lrzip.calibration.subjects import Network
from lrzip.calibration.truncation import Truncation, measure_output_changes
from lrzip.core.errors import UsageError
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments
from lrzip.decompositions import decomposition_of
from lrzip.decompositions.svd import SVD
from lrzip.linalg.svd import Solver
from lrzip.networks.programs.trace import export_network
from tests.support.calibration import images, layers_of
from tests.support.networks import Zoo, seeded


class Small(nn.Module):
    """A convolution, batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return out


@pytest.mark.parametrize("corrections", ["none", "bias"])
def test_measured_changes_are_those_of_the_factorized_network(corrections: str) -> None:
    model, x = seeded(Small), images(64, 8)
    how = CalibrationSettings(batch_size=32, corrections=Corrections.parse(corrections))
    calibration = calibrate(Network(model), x, layers_of(model), how, measured=True)
    compared: set[str] = set()
    for name in ("conv", "head"):
        measured = calibration.statistics[name].measured
        assert measured
        assert measured.ranks == tuple(sorted(set(measured.ranks)))
        for rank, change in zip(measured.ranks, measured.changes, strict=True):
            small = lrzip.factorize(model, rank=rank, only=[name], calibrate=x, calibration=how)
            if not isinstance(small.get_submodule(name), nn.Sequential):
                continue  # this rank would not save parameters
            compared.add(name)
            with torch.no_grad():
                expected = float((small(x) - model(x)).square().mean())
            # The same factors, in float32, in a program and in modules.
            assert change == pytest.approx(expected, rel=1e-3)
    assert compared == {"conv", "head"}


def test_every_kind_of_layer_can_be_measured() -> None:
    model = seeded(Zoo)
    batch: Arguments = (Zoo.inputs(4), {})
    network, layers = Network(model), layers_of(model)
    statistics = moments_of(network, layers, [batch], 1 << 20)
    named = {network.weight_name(layer): layer for layer in layers if layer.name in statistics}
    decomposition = decomposition_of("svd", Solver())
    truncation = Truncation(decomposition, statistics, centered=True)
    found = measure_output_changes(export_network(model, *batch), named, [batch], truncation)
    assert found.keys() == statistics.keys()
    # All but the attention have exact rank 2, at which nothing changes, up to the precision of float32 outputs.
    scale = float(model(*batch[0]).detach().square().mean())
    for name, measured in found.items():
        assert measured.ranks, name
        at_two = [change for rank, change in zip(measured.ranks, measured.changes, strict=True) if rank >= 2]
        assert name == "attention.in_proj" or all(change < 1e-8 * scale for change in at_two), name
    assert found["grouped"].changes[0] > 1e-8 * scale


def test_nothing_is_measured_by_default() -> None:
    model = seeded(Small)
    calibration = calibrate(Network(model), images(64, 8), layers_of(model), CalibrationSettings())
    assert [moments.measured for moments in calibration.statistics.values()] == [None, None]


def test_changes_are_measured_with_the_decomposition_that_is_given() -> None:
    class ConvolutionsOnly(SVD):
        def refuse(self, layer: Layer) -> str | None:
            return None if layer.name == "conv" else "not a convolution"

    model, decomposition = seeded(Small), ConvolutionsOnly(Solver())
    calibration = calibrate(
        Network(model),
        images(64, 8),
        layers_of(model),
        CalibrationSettings(),
        measured=True,
        decomposition=decomposition,
    )
    assert calibration.statistics["conv"].measured is not None
    assert calibration.statistics["head"].measured is None


def test_a_file_is_planned_by_measured_changes(tmp_path: Path) -> None:
    model, x, kept = seeded(Small), images(64, 8), tmp_path / "statistics.safetensors"
    torch.save(model.state_dict(), tmp_path / "model.pt")
    how = CalibrationSettings(corrections=Corrections(), save=kept)
    options = {"budget": "params=60%", "objective": "sensitivity", "dry_run": True}
    report = lrzip.compress(tmp_path / "model.pt", model=Small(), calibrate=x, calibration=how, **options)  # type: ignore[arg-type]
    assert report.plan.budget
    assert report.plan.budget.objective == "sensitivity"
    assert report.plan.budget.predicted_loss > 0
    again = lrzip.compress(tmp_path / "model.pt", calibrate=kept, **options)  # type: ignore[arg-type]
    assert again.plan == report.plan


def test_statistics_without_measured_changes_are_refused(tmp_path: Path) -> None:
    model, kept = seeded(Small), tmp_path / "statistics.safetensors"
    torch.save(model.state_dict(), tmp_path / "model.pt")
    lrzip.compress(
        tmp_path / "model.pt",
        budget="params=60%",
        dry_run=True,
        model=Small(),
        calibrate=images(64, 8),
        calibration=CalibrationSettings(save=kept),
    )
    with pytest.raises(UsageError, match=r"`objective=sensitivity` measures a network"):
        lrzip.compress(
            tmp_path / "model.pt", budget="params=60%", objective="sensitivity", calibrate=kept, dry_run=True
        )

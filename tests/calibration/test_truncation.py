"""MeasuredChanges sensitivity: what is measured, and how it travels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.calibration.calibrator import calibrate
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.statistics import moments_of
from lrzip.calibration.stored import load_statistics, save_statistics
from lrzip.calibration.subjects import Network
from lrzip.calibration.truncation import Truncation, measure_output_changes
from lrzip.core.errors import UsageError
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, MeasuredChanges
from lrzip.decompositions import decomposition_of
from lrzip.formats.live import LiveSource
from lrzip.linalg.svd import Solver
from lrzip.networks.architecture import Architecture
from lrzip.networks.programs.trace import export_network
from tests.support.networks import Zoo, seeded


def layers_of(model: nn.Module) -> list[Layer]:
    found = LiveSource(model).layers(Architecture.of(model))
    return [item for item in found if isinstance(item, Layer)]


class Small(nn.Module):
    """A convolution, batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return out


def images(count: int = 64) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("corrections", ["none", "bias"])
def test_what_is_measured_is_what_a_rank_does(corrections: str) -> None:
    model, x = seeded(Small), images()
    how = CalibrationSettings(batch_size=32, corrections=Corrections.parse(corrections))
    seen = calibrate(Network(model), x, layers_of(model), how, measured=True)
    compared: set[str] = set()
    for name in ("conv", "head"):
        measured = seen.statistics[name].measured
        assert measured
        assert measured.ranks == tuple(sorted(set(measured.ranks)))
        for rank, change in zip(measured.ranks, measured.changes, strict=True):
            small = lrzip.factorize(model, rank=rank, only=[name], calibrate=x, calibration=how)
            if not isinstance(small.get_submodule(name), nn.Sequential):
                continue  # it would be no smaller
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
    # All but the attention have exact rank 2 and lose nothing at that, to the precision of float32 outputs.
    scale = float(model(*batch[0]).detach().square().mean())
    for name, measured in found.items():
        assert measured.ranks, name
        at_two = [change for rank, change in zip(measured.ranks, measured.changes, strict=True) if rank >= 2]
        assert name == "attention.in_proj" or all(change < 1e-8 * scale for change in at_two), name
    assert found["grouped"].changes[0] > 1e-8 * scale


def test_nothing_is_measured_unless_asked_for() -> None:
    model = seeded(Small)
    seen = calibrate(Network(model), images(), layers_of(model), CalibrationSettings())
    assert all(moments.measured is None for moments in seen.statistics.values())


def test_measurements_are_kept(tmp_path: Path) -> None:
    model, kept = seeded(Small), tmp_path / "seen.safetensors"
    layers = layers_of(model)
    seen = calibrate(Network(model), images(), layers, CalibrationSettings(), measured=True)
    save_statistics(seen, kept)
    found = load_statistics(kept, layers)
    for name, moments in seen.statistics.items():
        assert isinstance(moments.measured, MeasuredChanges)
        assert found.statistics[name].measured == moments.measured


def test_a_file_is_planned_by_measurements(tmp_path: Path) -> None:
    model, x, kept = seeded(Small), images(), tmp_path / "seen.safetensors"
    torch.save(model.state_dict(), tmp_path / "model.pt")
    how = CalibrationSettings(corrections=Corrections(), save=kept)
    options = {"budget": "params=60%", "objective": "sensitivity", "dry_run": True}
    report = lrzip.compress(tmp_path / "model.pt", model=Small(), calibrate=x, calibration=how, **options)  # type: ignore[arg-type]
    assert report.plan.budget
    assert report.plan.budget.objective == "sensitivity"
    assert report.plan.budget.predicted_loss > 0
    again = lrzip.compress(tmp_path / "model.pt", calibrate=kept, **options)  # type: ignore[arg-type]
    assert again.plan == report.plan


def test_what_was_not_measured_is_missed(tmp_path: Path) -> None:
    model, kept = seeded(Small), tmp_path / "seen.safetensors"
    torch.save(model.state_dict(), tmp_path / "model.pt")
    lrzip.compress(
        tmp_path / "model.pt",
        budget="params=60%",
        dry_run=True,
        model=Small(),
        calibrate=images(),
        calibration=CalibrationSettings(save=kept),
    )
    with pytest.raises(UsageError, match="give `--model`"):
        lrzip.compress(
            tmp_path / "model.pt", budget="params=60%", objective="sensitivity", calibrate=kept, dry_run=True
        )

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lrzip
from lrzip.core.errors import UsageError
from tests.support.calibration import relative_error, settings_of
from tests.support.networks import seeded
from tests.support.tasks import Deep


def test_a_reconstruction_brings_outputs_closer() -> None:
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    model = seeded(Deep).eval()
    settings = settings_of("bias,sequential")
    before, after = (
        lrzip.factorize(model, rank=4, calibrate=x, calibration=replace(settings, reconstruct=steps))
        for steps in (0, 200)
    )
    assert relative_error(model, after, x) < 0.9 * relative_error(model, before, x)


def test_a_file_reports_the_trained_factors_and_the_changed_tensors(tmp_path: Path) -> None:
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    model = seeded(Deep).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    report = lrzip.compress(
        tmp_path / "model.pt",
        tmp_path / "small.pt",
        rank=4,
        layers={"fc4": "keep"},
        model=Deep(),
        calibrate=x,
        calibration=replace(settings_of("none"), reconstruct=3),
    )
    assert [result.decision.layer.name for result in report.results] == ["fc1", "fc2", "fc3"]
    for result in report.results:
        assert result.method.endswith(", trained")
        assert (result.excess, result.output_error) == (None, None)
    assert report.calibrated is not None
    assert set(report.calibrated.changed) == {"fc1.bias", "fc2.bias", "fc3.bias", "fc4.weight", "fc4.bias"}
    small = lrzip.load_into(Deep(), tmp_path / "small.pt")
    for result in report.results:
        weight = model.get_parameter(f"{result.decision.layer.name}.weight")
        factors = [small.get_parameter(f"{result.decision.layer.name}.{stage}.weight") for stage in (1, 0)]
        error = float(((weight - factors[0] @ factors[1]).norm() / weight.norm()).detach())
        assert result.error == pytest.approx(error, rel=1e-4)


def test_a_program_cannot_be_reconstructed(tmp_path: Path) -> None:
    x = torch.randn(16, 12)
    torch.export.save(torch.export.export(seeded(Deep), (x,)), tmp_path / "model.pt2")
    with pytest.raises(UsageError, match="trains a network"):
        lrzip.compress(
            tmp_path / "model.pt2",
            tmp_path / "small.pt2",
            rank=4,
            calibrate=x,
            calibration=replace(settings_of("none"), reconstruct=3),
            trust=True,
        )

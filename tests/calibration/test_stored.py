import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import lrzip
from lrzip.calibration.calibrator import calibrate
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.stored import holds_statistics, load_statistics, save_statistics
from lrzip.calibration.subjects import Network
from lrzip.core.errors import LrzipError, UsageError
from tests.support.calibration import calibration_of, images, layers_of, resnet, settings_of
from tests.support.networks import ResNet


def test_statistics_are_read_as_they_were_written(tmp_path: Path) -> None:
    model, path = resnet(images()), tmp_path / "s.safetensors"
    layers = layers_of(model)
    written = calibrate(Network(model), images(), layers, settings_of("none"), measured=True)
    save_statistics(written, path)
    assert holds_statistics(path)
    read = load_statistics(path, layers)
    assert (read.count, read.examples, read.run) == (written.count, str(path), None)
    assert read.statistics.keys() == written.statistics.keys() >= {"conv1", "linear"}
    for name, moments in written.statistics.items():
        other = read.statistics[name]
        assert torch.equal(moments.second, other.second)
        assert torch.equal(moments.first, other.first)
        assert moments.measured is not None
        assert (other.count, other.fisher, other.measured) == (moments.count, moments.fisher, moments.measured)


def test_the_keys_of_the_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    model = nn.Sequential(nn.Linear(12, 20))
    save_statistics(calibration_of(model, torch.randn(20, 12)), path)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"0.second", "0.first"}
        document = json.loads(file.metadata()["lrzip.calibration"])
    assert document.keys() == {"examples", "count", "layers"}
    assert document["layers"]["0"].keys() == {"count", "influence", "measured"}


@pytest.mark.parametrize("name", ["weights.safetensors", "damaged.safetensors", "missing.safetensors", "x.npz"])
def test_other_files_hold_no_statistics(name: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "weights.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    (tmp_path / "x.npz").write_bytes(b"no")
    assert not holds_statistics(tmp_path / name)


def test_statistics_replace_the_network_and_the_data(tmp_path: Path) -> None:
    x = images()
    model = resnet(x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    kept = tmp_path / "statistics.safetensors"
    settings = CalibrationSettings(corrections=Corrections(), save=kept)
    outputs = [tmp_path / name for name in ("a.pt", "b.pt")]
    lrzip.compress(tmp_path / "model.pt", outputs[0], ratio=2, model=ResNet(1), calibrate=x, calibration=settings)
    report = lrzip.compress(tmp_path / "model.pt", outputs[1], ratio=2, calibrate=kept)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert report.calibrated
    assert report.calibrated.examples == str(kept)
    options: Any = {"energy": 0.8, "decomposition": "tucker", "dry_run": True}
    assert lrzip.compress(tmp_path / "model.pt", **options, calibrate=kept).plan.factorize
    curve = lrzip.curve(tmp_path / "model.pt", "params=40%,60%", calibrate=kept)
    assert [point.plan.budget.objective for point in curve.points if point.plan.budget] == ["fisher"] * 2


def test_statistics_of_another_network_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "statistics.safetensors"
    models = {"model": nn.Sequential(nn.Linear(12, 20)), "other": nn.Sequential(nn.Linear(16, 20))}
    for name, model in models.items():
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    save_statistics(calibration_of(models["model"], torch.randn(20, 12)), kept)
    with pytest.raises(LrzipError, match=r"`0` has .* 12.* in it and .* 16.* here"):
        lrzip.compress(tmp_path / "other.pt", rank=2, calibrate=kept)
    with pytest.raises(LrzipError, match="has statistics of none of these layers"):
        load_statistics(kept, layers_of(nn.ModuleDict({"x": nn.Linear(12, 20)})))
    with pytest.raises(UsageError, match="nothing to run"):
        lrzip.compress(tmp_path / "model.pt", rank=2, calibrate=kept, calibration=settings_of("bias"))

from pathlib import Path

import pytest
import torch

import lrzip
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.errors import OutputExists, UsageError
from lrzip.core.layers import Layer
from lrzip.core.options import Opening
from lrzip.formats.live import LiveSource
from lrzip.formats.open import open_checkpoint
from lrzip.networks.architecture import Architecture
from lrzip.pipeline.calibrate import (
    by_checkpoint_name,
    calibrate_layers,
    check_statistics_output,
    network_of,
    subject_of,
)
from tests.support.networks import Net, seeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    state = {f"module.{name}": tensor for name, tensor in seeded(Net).state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_a_network_has_the_weights_of_the_checkpoint_and_leaves_the_architecture_alone(path: Path) -> None:
    model, trained = seeded(Net, 1), seeded(Net)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with open_checkpoint(path) as checkpoint:
        network = network_of(checkpoint, model, Opening())
    assert network
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in trained.state_dict().items())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_weights_alone_bring_no_network_to_run(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        assert network_of(checkpoint, None, Opening()) is None
        with pytest.raises(UsageError, match=r"`calibrate` runs the network, and .* holds only weights. Give `model="):
            subject_of(checkpoint, None, Opening())


def test_a_live_network_is_copied() -> None:
    model = seeded(Net)
    copied = network_of(LiveSource(model), None, Opening())
    assert copied is not model
    assert isinstance(copied, Net)


def test_tensors_of_a_network_get_the_names_of_the_checkpoint(path: Path) -> None:
    tensors = {"fc1.bias": torch.zeros(64)}
    with open_checkpoint(path) as checkpoint:
        assert by_checkpoint_name(tensors, checkpoint, Architecture.of(Net())).keys() == {"module.fc1.bias"}
        assert by_checkpoint_name(tensors, checkpoint, None) is tensors


def test_stored_statistics_need_no_network_and_take_no_corrections(path: Path, tmp_path: Path) -> None:
    stored = tmp_path / "seen.safetensors"
    settings = CalibrationSettings(save=stored, corrections=Corrections())
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    lrzip.compress(path, rank=2, model=Net(), calibrate=x, calibration=settings, dry_run=True)

    def never() -> None:
        raise AssertionError("nothing is to be run")

    with open_checkpoint(path) as checkpoint:
        layers = [item for item in checkpoint.layers(Architecture.of(Net())) if isinstance(item, Layer)]
    found = calibrate_layers(never, stored, layers, CalibrationSettings(), measured=False)  # type: ignore[arg-type]
    assert found.count == 16
    corrected = CalibrationSettings(corrections=Corrections(bias=True))
    with pytest.raises(UsageError, match="holds statistics, so there is nothing to run, correct or save"):
        calibrate_layers(never, stored, layers, corrected, measured=False)  # type: ignore[arg-type]
    with open_checkpoint(path) as checkpoint, pytest.raises(OutputExists):
        check_statistics_output(settings, checkpoint, force=False)

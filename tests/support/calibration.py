"""Networks, inputs and settings for tests of calibrations."""

import torch
from torch import Tensor, nn

from lrzip.calibration.calibrator import calibrate
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.result import Calibration
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.subjects import Network
from lrzip.core.layers import Layer
from lrzip.formats.live import LiveSource
from lrzip.networks.architecture import Architecture
from tests.support.networks import ResNet


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the layers of a network that can be factorized."""
    found = LiveSource(model).layers(Architecture.of(model))
    return [item for item in found if isinstance(item, Layer)]


def images(count: int = 48, size: int = 16) -> Tensor:
    """Return uniform noise of shape (count, 3, size, size)."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def resnet(x: Tensor, blocks: int = 1) -> nn.Module:
    """Return a ResNet with random weights, whose batch norms have the statistics of some inputs, as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNet(blocks).train()
    with torch.no_grad():
        for _ in range(20):
            model(x)
    return model.eval()


def settings_of(corrections: str, samples: int = 1024, memory: int = 1 << 30) -> CalibrationSettings:
    """Return settings with the corrections of some names, and batches of 16."""
    return CalibrationSettings(samples, 16, Corrections.parse(corrections), memory=memory)


def calibration_of(model: nn.Module, x: Tensor, corrections: str = "none", **options: int) -> Calibration:
    """Return the calibration of all layers of a network on some inputs."""
    return calibrate(Network(model), x, layers_of(model), settings_of(corrections, **options))


@torch.no_grad()
def relative_error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    """Return the relative error of the outputs of a compressed network."""
    expected, found = model(x), small(x)
    return float((found - expected).norm() / expected.norm())

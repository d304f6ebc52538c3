"""The setup of a session."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from lrzip.calibration.data import CalibrationData
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.options import Machine, Opening


@dataclass(frozen=True)
class Setup:
    """The network, the data and the machine that a session computes with.

    Attributes:
        model: Architecture of the checkpoint; its weights do not matter.
        input_shapes: Shape of each input of the network, such as `1,3,32,32`.
        latency: Whether to time the dense and the factorized network.
        min_speedup: Speedup below which layers stay dense; None for no limit.
        calibrate: Calibration data, if any.
        calibration: How to calibrate.
        opening: How files of the checkpoint are opened.
        machine: Where to compute.
        force: Whether to overwrite an existing file of statistics.
    """

    model: nn.Module | None = None
    input_shapes: Sequence[str] = ()
    latency: bool = False
    min_speedup: float | None = None
    calibrate: CalibrationData | None = None
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    opening: Opening = field(default_factory=Opening)
    machine: Machine = field(default_factory=Machine)
    force: bool = False

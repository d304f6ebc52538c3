from pathlib import Path
from typing import Any

import pytest

from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.errors import UsageError
from lrzip.training.data.augmentation import Preparation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "The samples of a calibration must be at least 1, got 0"),
        ({"batch_size": 0}, "The batch size of a calibration must be at least 1"),
        ({"positions": -1}, "The positions of a calibration must be at least 1"),
        ({"memory": 0}, "The memory of a calibration must be at least 1"),
        ({"save": Path("statistics.pt")}, r"takes a \.safetensors file, got `statistics.pt`"),
        ({"reconstruct": -1}, "`reconstruct` takes a number of steps, got -1"),
        ({"preparation": Preparation(augment=("flip",))}, "goes with `reconstruct`"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CalibrationSettings(**options)


def test_augmentation_goes_with_reconstruction() -> None:
    assert CalibrationSettings(preparation=Preparation(augment=("flip",)), reconstruct=10).reconstruct == 10

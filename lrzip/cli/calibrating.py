"""Calibration on the command line."""

from typing import TYPE_CHECKING

from lrzip.cli.commands import Given
from lrzip.core.options import CalibrationData, CalibrationOptions, Factoring

if TYPE_CHECKING:
    from lrzip.calibration.settings import CalibrationSettings


def calibration_of(given: Given) -> "CalibrationSettings | None":
    """Return the settings of a calibration, or None without calibration data.

    Raises:
        UsageError: A value is invalid.
    """
    if given[CalibrationData].calibrate is None:
        return None
    from lrzip.calibration.corrections import Corrections
    from lrzip.calibration.settings import CalibrationSettings
    from lrzip.cli.learning import preparation_of
    from lrzip.ranks.amounts import parse_size

    options = given[CalibrationOptions]
    memory, correct = options.calibration_memory, options.correct
    return CalibrationSettings(
        samples=options.calibration_samples or CalibrationSettings.samples,
        memory=CalibrationSettings.memory if memory is None else parse_size("--calibration-memory", memory),
        corrections=None if correct is None else Corrections.parse(correct),
        preparation=preparation_of(given),
        seed=given[Factoring].seed,
        reconstruct=options.reconstruct,
        save=options.save_statistics,
    )

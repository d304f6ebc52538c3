"""Calibration on the command line."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lrzip.cli.console import refuse

if TYPE_CHECKING:
    from lrzip.calibration.settings import CalibrationSettings


_OPTIONS = (
    *("--calibration-samples", "--calibration-memory", "--correct", "--save-statistics", "--reconstruct"),
    *("--mean", "--std", "--augment"),
)


def calibration_of(
    examples: str | None,
    given: Collection[str],
    *,
    samples: int | None,
    memory: str | None,
    correct: str | None,
    save: Path | None,
    reconstruct: int,
    preparation: tuple[str | None, str | None, str | None],
    seed: int,
) -> "CalibrationSettings | None":
    """Return what options say of a calibration of some examples, or None without one.

    Raises:
        UsageError: An option makes no sense, or one that goes with examples was given without.
    """
    if examples is None:
        refuse(given, _OPTIONS, "`{}` goes with `--calibrate SPEC`, which is missing.")
        return None
    from lrzip.calibration.corrections import Corrections
    from lrzip.calibration.settings import CalibrationSettings
    from lrzip.ranks.amounts import parse_size
    from lrzip.training.data.augmentation import Preparation

    settings = CalibrationSettings(
        preparation=Preparation.parse(*preparation), seed=seed, reconstruct=reconstruct, save=save
    )
    if samples is not None:
        settings = replace(settings, samples=samples)
    if memory is not None:
        settings = replace(settings, memory=parse_size("--calibration-memory", memory))
    if correct is not None:
        settings = replace(settings, corrections=Corrections.parse(correct))
    return settings

"""Convert the keywords of public functions into the setup of a session."""

from lrzip.api.keywords import CalibrationKeywords
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.declarations import Options
from lrzip.core.errors import UsageError
from lrzip.core.options import CalibrationData, Inputs, Machine, Network, Opening, Speedup, Timing
from lrzip.core.output_options import Overwriting
from lrzip.pipeline.setup import Setup
from lrzip.pipeline.survey import check_device


def setup_of(given: Options) -> Setup:
    """Return the setup that keywords specify."""
    return Setup(
        model=given[Network].model,
        input_shapes=given[Inputs].input_shapes,
        latency=given[Timing].latency,
        min_speedup=given[Speedup].min_speedup,
        calibrate=given[CalibrationData].calibrate,
        calibration=given[CalibrationKeywords].calibration or CalibrationSettings(),
        opening=given[Opening],
        machine=given[Machine],
        force=given[Overwriting].force,
    )


def check_setup(given: Options) -> None:
    """Raise a UsageError for a device that cannot be used, or settings of a calibration without data."""
    check_device(given[Machine].device)
    if given[CalibrationKeywords].calibration and given[CalibrationData].calibrate is None:
        raise UsageError("`calibration` has no effect without calibration data. Give it with `calibrate`.")

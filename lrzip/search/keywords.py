"""Keywords of `compress_within`, as types and as declared options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypedDict

from lrzip.api.keywords import OpeningOptions
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.declarations import keyword
from lrzip.core.options import Opening, Selection
from lrzip.core.output_options import Overwriting
from lrzip.core.training_options import Bound
from lrzip.search.trial import Trial
from lrzip.training.outcomes import StepCallback


class VariantOptions(TypedDict, total=False):
    """Keywords of `lrzip.factorize` that hold for every network of a search."""

    objective: str | None
    round_to: int | None
    decomposition: str
    svd: str
    oversample: int
    power_iterations: int
    tolerance: float
    seed: int
    calibration: CalibrationSettings | None


@dataclass(frozen=True)
class SearchKeywords:
    """Settings and callbacks of a search that exist only in Python."""

    heading: ClassVar[str] = "Within a bound"

    options: VariantOptions | None = keyword(
        None, "How ranks and factors are computed, as keywords of `lrzip.factorize`, such as `decomposition`."
    )
    calibrate: bool = keyword(
        False,
        "Whether unlabeled samples of the training set determine factors, and ranks within a budget. That may take "
        "longer than a brief fine-tuning, which recovers much of the difference.",
    )
    announce: Callable[[str], None] | None = keyword(None, "Callback before each fine-tuning, with a description.")
    watch: StepCallback | None = keyword(None, "Callback after each step of fine-tuning.")
    decided: Callable[[Trial], None] | None = keyword(None, "Callback with each trial.")


class SearchOptions(OpeningOptions, total=False):
    """Keywords of `lrzip.compress_within`."""

    strategy: str | None
    only: Sequence[str]
    skip: Sequence[str]
    options: VariantOptions | None
    calibrate: bool
    test: str | None
    log: str | Path | None
    resume: bool
    force: bool
    announce: Callable[[str], None] | None
    watch: StepCallback | None
    decided: Callable[[Trial], None] | None


SEARCH_GROUPS = (Bound, SearchKeywords, Selection, Opening, Overwriting)

"""Keywords of the public functions, as types; `lrzip.core.options` and its neighbors declare and describe them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict

from torch import Tensor, nn

from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.declarations import Group, keyword
from lrzip.core.options import (
    CalibrationData,
    Factoring,
    Inputs,
    Key,
    LayerRules,
    Machine,
    NamedTarget,
    Network,
    Opening,
    Selection,
    Speedup,
    Target,
    Timing,
)
from lrzip.core.output_options import Analyzing, MergedLayers, Overwriting, Writing
from lrzip.core.progress import Progress, silent
from lrzip.core.training_options import Batching, DataOptions, FinetuneFiles, FinetuneTeacher, Smoothing, TrainedModules

if TYPE_CHECKING:  # these import packages for training
    from lrzip.training.data.augmentation import Preparation
    from lrzip.training.data.samples import Samples
    from lrzip.training.learning import Learning
    from lrzip.training.losses import Distillation
    from lrzip.training.outcomes import StepCallback
    from lrzip.training.settings import Settings


@dataclass(frozen=True)
class CalibrationKeywords:
    """Settings of the calibration."""

    heading: ClassVar[str] = "Calibration"

    calibration: CalibrationSettings | None = keyword(
        None, "Number of calibration samples, memory, corrections and reconstruction; needs `calibrate`."
    )


@dataclass(frozen=True)
class MeasuringKeywords:
    """Measurements of plans."""

    heading: ClassVar[str] = "Data"

    learning: "Learning | None" = keyword(None, "Data and metrics by which the network of each plan is measured.")


@dataclass(frozen=True)
class LiveKeywords:
    """Factorization of a live network."""

    heading: ClassVar[str] = "Network"

    device: str | None = keyword(None, "Device of all computations; None for that of the network's parameters.")
    inplace: bool = keyword(False, "Change the network itself instead of a copy.")
    progress: Progress = keyword(silent, "Callback before each layer, with phase, layer, index and count.")


@dataclass(frozen=True)
class TrainingKeywords:
    """Groups of settings for training."""

    heading: ClassVar[str] = "Training"

    preparation: "Preparation | None" = keyword(None, "Changes to inputs of files and folders before the network.")
    distillation: "Distillation | None" = keyword(None, "Weights of the teacher's outputs; needs `teacher`.")
    settings: "Settings | None" = keyword(None, "Optimizer, schedule, length and precision of the training.")
    watch: "StepCallback | None" = keyword(None, "Callback after each step.")


class OpeningOptions(TypedDict, total=False):
    """Keywords of functions that open checkpoints."""

    key: Key
    trust: bool


class RuleOptions(TypedDict, total=False):
    """Keywords for rank rules."""

    energy: float | None
    ratio: float | None
    rank: int | None
    error: float | str | None
    vbmf: bool
    budget: str | None


class FactoringOptions(TypedDict, total=False):
    """Keywords for layers, their ranks and their factors."""

    layers: Mapping[str, str] | None
    only: Sequence[str]
    skip: Sequence[str]
    objective: str | None
    round_to: int | None
    decomposition: str
    svd: str
    oversample: int
    power_iterations: int
    tolerance: float
    seed: int
    calibration: CalibrationSettings | None
    progress: Progress


class PlanningOptions(FactoringOptions, OpeningOptions, total=False):
    """Keywords of functions that plan for checkpoints."""

    dtype: str
    model: nn.Module | None
    calibrate: str | Path | Tensor | None
    input_shapes: Sequence[str]
    device: str
    force: bool


class CompressOptions(RuleOptions, PlanningOptions, total=False):
    """Keywords of `lrzip.compress`."""

    rank_rule: str | None
    plan: str | Path | None
    force_factorize: bool
    latency: bool
    min_speedup: float | None
    keep_optimizer: bool
    keep_others: bool
    dry_run: bool


PLANNING_GROUPS: tuple[type[Group], ...] = (
    LayerRules,
    Selection,
    Factoring,
    Network,
    Inputs,
    CalibrationData,
    CalibrationKeywords,
    Opening,
    Machine,
    Overwriting,
)
COMPRESS_GROUPS = (Target, NamedTarget, *PLANNING_GROUPS, Speedup, Timing, Writing)


class CurveOptions(PlanningOptions, total=False):
    """Keywords of `lrzip.curve`."""

    learning: "Learning | None"


CURVE_GROUPS = (*PLANNING_GROUPS, MeasuringKeywords)


class FactorizeOptions(RuleOptions, FactoringOptions, total=False):
    """Keywords of `lrzip.factorize`."""

    calibrate: "str | Path | Tensor | Samples | None"
    device: str | None
    inplace: bool


FACTORIZE_GROUPS = (Target, LayerRules, Selection, Factoring, CalibrationData, CalibrationKeywords, LiveKeywords)


class AnalyzeOptions(OpeningOptions, total=False):
    """Keywords of `lrzip.analyze`."""

    energies: Sequence[float]
    only: Sequence[str]
    skip: Sequence[str]
    model: nn.Module | None
    input_shapes: Sequence[str]
    latency: bool
    device: str
    progress: Progress


ANALYZE_GROUPS = (Analyzing, Selection, Network, Inputs, Timing, Opening, Machine)


class ExportOptions(OpeningOptions, total=False):
    """Keywords of `lrzip.export`."""

    only: Sequence[str]
    skip: Sequence[str]
    device: str
    model: nn.Module | None
    input_shapes: Sequence[str]
    force: bool


EXPORT_GROUPS = (MergedLayers, Network, Inputs, Opening, Machine, Overwriting)


class FinetuneOptions(OpeningOptions, total=False):
    """Keywords of `lrzip.finetune`."""

    model: nn.Module | None
    only: Sequence[str]
    skip: Sequence[str]
    val: str | None
    val_fraction: float
    preparation: "Preparation | None"
    image_size: int | None
    loss: str
    label_smoothing: float
    metrics: Sequence[str]
    teacher: str | Path | None
    distillation: "Distillation | None"
    settings: "Settings | None"
    device: str
    workers: int
    resume: str | Path | None
    log: str | Path | None
    force: bool
    watch: "StepCallback | None"


FINETUNE_GROUPS = (
    Network,
    DataOptions,
    Batching,
    Smoothing,
    TrainedModules,
    FinetuneTeacher,
    FinetuneFiles,
    TrainingKeywords,
    Opening,
    Machine,
    Overwriting,
)

"""Options of planning, factorizing and writing, by group. See `lrzip.core.declarations` for their use.

The modes of `compress` are one plan, a curve of plans for several budgets, and a search within a bound on the metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from lrzip.core.declarations import keyword, option
from lrzip.core.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

Key: TypeAlias = str | Sequence[str] | None
"""Dotted name of an entry of a nested file, or several; None for the default choice."""

PLAN, CURVE, BOUND = "plan", "curve", "bound"
PLANS = (PLAN, CURVE)
"""Modes that plan by rank rules; the search within a bound chooses ranks itself."""


@dataclass(frozen=True)
class Target:
    """Rank rules, of which exactly one is given."""

    heading: ClassVar[str] = "Layers and ranks"

    energy: float | None = option(
        None, "Smallest ranks that keep this share of Σσ² of each layer, in (0, 1].", modes=(PLAN,)
    )
    ratio: float | None = option(None, "Factor by which the parameters of each layer shrink, above 1.", modes=(PLAN,))
    rank: int | None = option(None, "Rank of every layer in which it saves parameters.", modes=(PLAN,))
    error: float | str | None = option(
        None,
        "Smallest ranks with ‖W − W′‖ ≤ E ‖W‖ for each layer, E in (0, 1): Frobenius norm, or operator norm by "
        "spectral:E.",
        metavar="E",
        modes=(PLAN,),
        parsed=str | None,
    )
    vbmf: bool = option(
        False, "Number of singular values above noise, by variational Bayes matrix factorization.", modes=(PLAN,)
    )
    budget: str | None = option(
        None,
        "Ranks with the least predicted loss within a budget for the whole checkpoint: params=50% or 1.2M, "
        "nbytes=10MB, macs=40%, latency=60% or 5ms. Several amounts, params=20%,40%, give a curve with `dry_run`.",
        metavar="UNIT=AMOUNT",
        modes=PLANS,
    )


@dataclass(frozen=True)
class NamedTarget:
    """Targets other than rank rules; exactly one target or rank rule is given."""

    heading: ClassVar[str] = "Layers and ranks"

    rank_rule: str | None = option(
        None,
        "Any of the rules by name: energy:0.8, ratio:4, rank:16, error:0.1, vbmf, budget:params=50%, or "
        "pca-energy:speedup=4, the greedy choice for a number of MACs.",
        metavar="RULE",
        modes=(PLAN,),
    )
    plan: str | Path | None = option(
        None, "Plan file that decides on every layer.", metavar="FILE", modes=(PLAN,), parsed=Path | None
    )


@dataclass(frozen=True)
class LayerRules:
    """Rank rules of single layers."""

    heading: ClassVar[str] = "Layers and ranks"

    layers: Mapping[str, str] | None = option(
        None,
        "Rules of the layers that match globs: energy:0.8, ratio:4, rank:16, error:0.1, vbmf or keep; a "
        "decomposition, such as tucker, alone or before a rule: tucker:energy:0.8. The last match wins.",
        flag="--layer",
        metavar="GLOB=RULE",
        modes=PLANS,
        parsed=list[str] | None,
    )


@dataclass(frozen=True)
class Selection:
    """Layers to factorize, by glob on their names."""

    heading: ClassVar[str] = "Layers and ranks"

    only: Sequence[str] = option(
        (),
        "Globs of the layers to factorize. One that is more than wildcards also settles what an ambiguous layer is.",
        metavar="GLOB",
        parsed=list[str] | None,
    )
    skip: Sequence[str] = option((), "Globs of the layers to leave dense.", metavar="GLOB", parsed=list[str] | None)


@dataclass(frozen=True)
class Factoring:
    """Computation of ranks and factors."""

    heading: ClassVar[str] = "Factors"

    objective: str | None = option(
        None,
        "Prediction of the loss of a rank: relative-energy, energy, log-energy, scaled-log-energy, operator-norm, "
        "fisher or sensitivity (measured).",
        heading="Layers and ranks",
        shown="fisher for calibrated networks, else scaled-log-energy",
    )
    round_to: int | None = option(
        None,
        "Multiple to which ranks are rounded up where that still saves parameters.",
        heading="Layers and ranks",
        shown="8 for convolutions in ONNX, whose runtimes block channels; else 1",
        modes=PLANS,
    )
    force_factorize: bool = option(
        False,
        "Factorize layers even where that saves nothing, to check a program at full rank.",
        heading="Layers and ranks",
        modes=(PLAN,),
    )
    decomposition: str = option(
        "svd",
        "svd; for k×k convolutions tucker (1×1, k×k, 1×1), spatial (k×1, 1×k), cp (1×1, depthwise k×1 and 1×k, 1×1), "
        "filter-basis or depthwise-separable (depthwise k×k, 1×1), while other layers use the SVD; or auto: the best "
        "one for each layer.",
    )
    svd: str = option(
        "auto", "auto, exact, gram, or a sketch: randomized, subspace, srft, row-extraction, single-pass."
    )
    oversample: int = option(10, "Number of sketch vectors beyond the rank.")
    power_iterations: int = option(2, "Number of power iterations of a sketch.")
    tolerance: float = option(
        1e-3, "Largest excess of an error over the best possible one, as a share; inf accepts sketches unchecked."
    )
    dtype: str = option("keep", "Dtype of the factors: keep, float32, float64, float16 or bfloat16.", modes=PLANS)
    seed: int = option(0, "Seed of all sketches; the same seed gives the same bytes.")


@dataclass(frozen=True)
class Speedup:
    """The smallest useful speedup of a layer."""

    heading: ClassVar[str] = "Layers and ranks"

    min_speedup: float | None = option(
        None, "Leave layers dense unless their factors run this many times faster on this machine.", modes=(PLAN,)
    )


@dataclass(frozen=True)
class Network:
    """The architecture that a checkpoint belongs to."""

    heading: ClassVar[str] = "Network and file"

    model: "nn.Module | None" = option(
        None,
        "Architecture of the checkpoint: an instance in Python, a class or function on the command line, whose module "
        "is imported and run.",
        metavar="PKG.MOD:NET",
        parsed=str | None,
    )


@dataclass(frozen=True)
class NetworkArguments:
    """Arguments of the architecture."""

    heading: ClassVar[str] = "Network and file"

    model_arg: Sequence[str] = option(
        (),
        "Arguments with which `model` is called.",
        metavar="NAME=VALUE",
        goes_with=("model",),
        parsed=list[str] | None,
    )


@dataclass(frozen=True)
class Inputs:
    """Inputs of the network."""

    heading: ClassVar[str] = "Network and file"

    input_shapes: Sequence[str] = option(
        (),
        "Shape of each input of the network: 1,3,32,32 or 1,length=128:int64; the batch is dynamic.",
        flag="--input-shape",
        metavar="SIZES",
        modes=PLANS,
        parsed=list[str] | None,
    )


@dataclass(frozen=True)
class Timing:
    """Measurements of time."""

    heading: ClassVar[str] = "Network and file"

    latency: bool = option(False, "Time the dense and the factorized network on this machine.", modes=(PLAN,))


@dataclass(frozen=True)
class CalibrationData:
    """Calibration data."""

    heading: ClassVar[str] = "Calibration"

    calibrate: "str | Path | Tensor | None" = option(
        None,
        "Calibration data without labels, in the forms that `data` takes, a tensor (n, …) in Python, or the file of "
        "`save_statistics`. Ranks and factors then minimize the error of outputs on it. Needs `model` or a program.",
        metavar="SPEC",
        modes=PLANS,
        parsed=str | None,
    )


@dataclass(frozen=True)
class CalibrationOptions:
    """The fields of `CalibrationSettings` on the command line."""

    heading: ClassVar[str] = "Calibration"

    calibration_samples: int | None = option(
        None,
        "Number of calibration samples, drawn at random.",
        minimum=1,
        shown="1024",
        modes=PLANS,
        goes_with=("calibrate",),
    )
    calibration_memory: str | None = option(
        None,
        "Memory for the statistics of one pass, such as 500MB.",
        metavar="SIZE",
        shown="2GiB",
        modes=PLANS,
        goes_with=("calibrate",),
    )
    reconstruct: int = option(
        0,
        "Steps of training, without labels, that fit the outputs of the factorized network to those of the dense one.",
        metavar="STEPS",
        minimum=0,
        modes=PLANS,
        goes_with=("calibrate",),
    )
    save_statistics: Path | None = option(
        None,
        "File for the statistics of the calibration, which `calibrate` accepts later.",
        metavar="FILE.safetensors",
        modes=PLANS,
        goes_with=("calibrate",),
    )
    correct: str | None = option(
        None,
        "Corrections for the error of other layers: none, or some of bias, sequential, residual, refit, response.",
        metavar="NAMES",
        shown="all",
        modes=PLANS,
        goes_with=("calibrate",),
    )


@dataclass(frozen=True)
class Opening:
    """How a checkpoint is opened."""

    heading: ClassVar[str] = "Network and file"

    key: Key = option(
        None,
        "Entry of a nested file that holds the weights; several are taken together, with their names as prefixes.",
        metavar="NAME",
        parsed=list[str] | None,
    )
    trust: bool = option(False, "Allow files to run code when they are loaded.")


@dataclass(frozen=True)
class Machine:
    """Device of the computation."""

    heading: ClassVar[str] = "Network and file"

    device: str = option("cpu", "Device of all computations: cpu, cuda, cuda:1.")
    progress: Progress = keyword(silent, "Callback before each layer, with phase, layer, index and count.")


@dataclass(frozen=True)
class Threads:
    """Threads of the process."""

    heading: ClassVar[str] = "Network and file"

    threads: int | None = option(None, "Number of threads.", minimum=1, maximum=1024, shown="all cores")

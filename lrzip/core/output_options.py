"""Options of outputs and reports, by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lrzip.core.declarations import option
from lrzip.core.options import BOUND, CURVE, PLAN, PLANS


@dataclass(frozen=True)
class Destination:
    """The output."""

    heading: ClassVar[str] = "Output"

    output: Path | None = option(
        None,
        "File or folder to write; the suffix names the format, `-` is standard output.",
        short="-o",
        metavar="OUT",
    )


@dataclass(frozen=True)
class Overwriting:
    """Existing outputs."""

    heading: ClassVar[str] = "Output"

    force: bool = option(False, "Overwrite existing outputs.")


@dataclass(frozen=True)
class Writing:
    """Files that `compress` writes."""

    heading: ClassVar[str] = "Output"

    dry_run: bool = option(False, "Plan and report, and write nothing.", modes=PLANS)
    keep_optimizer: bool = option(False, "Keep an optimizer state that no longer fits the parameters.", modes=PLANS)
    keep_others: bool = option(
        False, "Keep the files of a folder that are dense copies of the weights or no longer fit.", modes=PLANS
    )


@dataclass(frozen=True)
class CompressOutputs:
    """Further outputs and gates of `compress`."""

    heading: ClassVar[str] = "Output"

    save_plan: Path | None = option(
        None, "File for the plan, which `plan` accepts after editing.", metavar="FILE", modes=(PLAN, BOUND)
    )
    plot: Path | None = option(
        None,
        "Picture (.png, .svg, .pdf) of size against predicted loss for several budgets, or against the metric.",
        modes=(CURVE, BOUND),
    )
    min_ratio: float | None = option(None, "Exit with 3 if parameters shrink by a smaller factor.", modes=(PLAN, BOUND))
    max_error: float | None = option(
        None, "Exit with 3 if the relative error of any layer is larger.", modes=(PLAN,), excludes=("dry_run",)
    )


@dataclass(frozen=True)
class Analyzing:
    """Layers and ranks that `analyze` reports."""

    heading: ClassVar[str] = "Layers and ranks"

    energies: Sequence[float] = option(
        (0.7, 0.8, 0.9, 0.95, 0.99),
        "Shares of Σσ² for which ranks are reported, in (0, 1].",
        flag="--energy",
        shown="0.7 0.8 0.9 0.95 0.99",
        parsed=list[float] | None,
    )


@dataclass(frozen=True)
class AnalyzeOutputs:
    """Tables and plots of `analyze`."""

    heading: ClassVar[str] = "Output"

    spectrum: bool = option(False, "Include all singular values.")
    sort: str | None = option(None, "Column to sort by, named as in the JSON document.", metavar="COLUMN")
    plot: Path | None = option(None, "Picture (.png, .svg, .pdf) of the spectra or the sensitivities.")
    report: Path | None = option(None, "HTML page of the analysis.")


@dataclass(frozen=True)
class Exporting:
    """Files that `export` writes."""

    heading: ClassVar[str] = "Output"

    to: str = option("", "safetensors, state-dict, dense (factors merged), onnx or pt2.")


@dataclass(frozen=True)
class MergedLayers:
    """Layers whose factors are merged, by glob on their names."""

    heading: ClassVar[str] = "Output"

    only: Sequence[str] = option(
        (), "Globs of the layers to merge where factors are merged.", metavar="GLOB", parsed=list[str] | None
    )
    skip: Sequence[str] = option(
        (), "Globs of the layers to leave factorized where factors are merged.", metavar="GLOB", parsed=list[str] | None
    )


@dataclass(frozen=True)
class Printing:
    """Output on the terminal."""

    heading: ClassVar[str] = "Output"

    json: bool = option(False, "Print one JSON document.")
    quiet: bool = option(False, "Print results and errors, without progress and warnings.", short="-q")

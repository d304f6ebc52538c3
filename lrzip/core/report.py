"""The report of a compression: results by layer and in total."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrzip.core.costs import Costs
from lrzip.core.decisions import Factorize
from lrzip.core.factors import GroupFactors
from lrzip.core.plan import SCHEMA, Plan


@dataclass(frozen=True)
class LayerResult:
    """The result of one decision.

    Attributes:
        decision: Decision of the plan.
        error: Relative Frobenius error of the stored factors; for a group, the largest.
        method: Method that computed the factors.
        excess: Upper bound on error / (least error of these ranks) - 1; None if there is none.
        seconds: Wall time of reading and factorizing.
        output_error: Relative error of the outputs of the layer on calibration data; None without calibration.
    """

    decision: Factorize
    error: float
    method: str
    excess: float | None
    seconds: float
    output_error: float | None = None

    @classmethod
    def of(cls, decision: Factorize, factors: GroupFactors, seconds: float) -> "LayerResult":
        """Return the result of a decision from its factors."""
        return cls(decision, factors.error, factors.method, factors.excess, seconds, factors.output_error)


@dataclass(frozen=True)
class Difference:
    """Change of an output of a program on some inputs.

    Attributes:
        output: Name of the output.
        absolute: Largest absolute difference of an element.
        relative: Frobenius norm of the difference over that of the output before.
    """

    output: str
    absolute: float
    relative: float

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as it appears in JSON documents."""
        return {"output": self.output, "absolute": self.absolute, "relative": self.relative}


@dataclass(frozen=True)
class Comparison:
    """Changes of the outputs of a program on some inputs.

    Attributes:
        differences: One for each output that depends on the inputs.
        inputs: Description of the inputs, such as `random inputs of 1 × 3 × 64 × 64`; empty if nothing was compared.
        not_compared: Reason why some or all outputs were not compared.
    """

    differences: Sequence[Difference] = ()
    inputs: str = ""
    not_compared: str | None = None


@dataclass(frozen=True)
class EntryChoice:
    """The entry of a nested file that holds the weights.

    Attributes:
        key: Dotted name of the entry, or of several; "" for the file itself.
        others: Dotted names of the other entries that hold weights.
    """

    key: str = ""
    others: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as it appears in JSON documents."""
        return {"key": self.key, "others": list(self.others)}


@dataclass(frozen=True)
class CalibrationSummary:
    """Summary of the calibration that ranks and factors are based on.

    Attributes:
        examples: Name of the calibration data.
        count: Number of samples.
        corrections: Applied corrections, in the syntax of `correct`.
        changed: Names of the tensors with changed values, besides the weights of factorized layers.
        scarce: Layers with fewer inputs than columns of the unfolded weight: pairs (inputs, columns) by name.
        remarks: What was left out, and why.
    """

    examples: str
    count: int
    corrections: str
    changed: Sequence[str]
    scarce: Mapping[str, tuple[int, int]]
    remarks: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as it appears in JSON documents."""
        scarce = [
            {"name": name, "positions": inputs, "columns": columns} for name, (inputs, columns) in self.scarce.items()
        ]
        return {
            "examples": self.examples,
            "count": self.count,
            "corrections": self.corrections,
            "remarks": list(self.remarks),
            "changed": list(self.changed),
            "scarce": scarce,
        }


@dataclass(frozen=True)
class Report:
    """Report of a compression, or of a dry run, which has no results.

    Attributes:
        plan: The plan.
        results: One result for each decision of the plan, in any order; empty for a dry run.
        output: File or folder that was written, if any.
        parameters_before: Floating-point elements of the source, without the running statistics of batch norms.
        nbytes_before: Size of the source on disk.
        nbytes_after: Size of the output on disk; for a dry run, that of the source minus the saved bytes of tensors.
        dropped: Entries of the source that were not copied, each with its reason.
        seconds: Total wall time.
        version: Version of lrzip.
        costs: Costs of a run, if the network and its inputs are known.
        usage: Instructions to load the output, if it needs any.
        comparison: Changes of the program's outputs, for formats whose program can be run.
        notes: What else users should know about the output.
        calibrated: Summary of the calibration, if there was one.
        entry: Entry of a nested source that holds the weights.
    """

    plan: Plan
    results: Sequence[LayerResult]
    output: Path | None
    parameters_before: int
    nbytes_before: int
    nbytes_after: int
    dropped: Sequence[tuple[str, str]]
    seconds: float
    version: str
    costs: Costs | None = None
    usage: str | None = None
    comparison: Comparison = field(default_factory=Comparison)
    notes: Sequence[str] = ()
    calibrated: CalibrationSummary | None = None
    entry: EntryChoice = field(default_factory=EntryChoice)

    @property
    def differences(self) -> Sequence[Difference]:
        """Changes of the outputs that were compared."""
        return self.comparison.differences

    @property
    def not_compared(self) -> str | None:
        """Reason why some or all outputs were not compared, for a program."""
        return self.comparison.not_compared

    @property
    def parameters_after(self) -> int:
        """Floating-point elements of the output, counted like `parameters_before`."""
        return self.parameters_before - self.plan.parameters_saved

    @property
    def ratio(self) -> float:
        """Parameters before divided by parameters after."""
        return self.parameters_before / self.parameters_after

    @property
    def max_error(self) -> float | None:
        """Largest relative Frobenius error of a replaced layer; None for a dry run."""
        return max((result.error for result in self.results), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        results = {result.decision.group.name: result for result in self.results}
        return {
            "schema": SCHEMA,
            "lrzip": self.version,
            "input": self.plan.source,
            "output": str(self.output) if self.output else None,
            "entry": self.entry.to_dict(),
            "totals": {
                "parameters_before": self.parameters_before,
                "parameters_after": self.parameters_after,
                "ratio": round(self.ratio, 4),
                "nbytes_before": self.nbytes_before,
                "nbytes_after": self.nbytes_after,
                "layers_factorized": len(self.plan.factorize),
                "max_error": self.max_error,
                "seconds": round(self.seconds, 3),
            }
            | ({"budget": self.plan.budget.to_dict()} if self.plan.budget else {})
            | (self.costs.to_dict() if self.costs else {}),
            "layers": [
                _layer_document(decision, results.get(decision.group.name))
                | (self.costs.layers[decision.group.name].to_dict() if self.costs else {})
                for decision in self.plan.factorize
            ],
            "kept": [{"name": keep.name, "tensor": keep.tensor.name, "reason": keep.reason} for keep in self.plan.keep],
            "dropped": [{"name": name, "reason": reason} for name, reason in self.dropped],
            "differences": [difference.to_dict() for difference in self.differences],
            "compared_on": self.comparison.inputs or None,
            "not_compared": self.not_compared,
            "notes": list(self.notes),
        } | ({"calibration": self.calibrated.to_dict()} if self.calibrated else {})


def _layer_document(decision: Factorize, result: LayerResult | None) -> dict[str, Any]:
    document = decision.to_dict()
    del document["stages"]
    if result:
        document |= {
            "error": result.error,
            "method": result.method,
            "excess": result.excess,
            "seconds": round(result.seconds, 4),
        } | ({} if result.output_error is None else {"output_error": result.output_error})
    return document

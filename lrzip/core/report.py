"""What a compression did, layer by layer and in total."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrzip.core.costs import Costs
from lrzip.core.factors import Factors
from lrzip.core.plan import SCHEMA, Factorize, Plan


@dataclass(frozen=True)
class LayerResult:
    """One layer that was replaced.

    Attributes:
        decision: What was planned.
        error: Relative Frobenius error of what is stored.
        method: How the factors were computed.
        excess: Bound on the error over the best possible one, less 1; None where it was not checked.
        seconds: Wall time of reading and factorizing.
        output_error: Relative error of what the layer makes of the inputs of a calibration.
    """

    decision: Factorize
    error: float
    method: str
    excess: float | None
    seconds: float
    output_error: float | None = None

    @classmethod
    def of(cls, decision: Factorize, factors: Factors, seconds: float) -> "LayerResult":
        """Return what is told of factors."""
        return cls(decision, factors.error, factors.method, factors.excess, seconds, factors.output_error)


@dataclass(frozen=True)
class Difference:
    """By how much an output of the program changed, on random inputs of the declared shapes.

    Attributes:
        output: Name of the output.
        absolute: Largest absolute difference of an element.
        relative: Frobenius norm of the difference over that of the output before.
    """

    output: str
    absolute: float
    relative: float

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as `--json` prints it."""
        return {"output": self.output, "absolute": self.absolute, "relative": self.relative}


@dataclass(frozen=True)
class CalibrationSummary:
    """By what ranks and factors were chosen, other than by weights alone.

    Attributes:
        examples: What people call the examples that the network ran on.
        count: How many there were.
        corrections: What was made up for, as `--correct` takes it.
        changed: Names of the tensors, beside the weights of factorized layers, that have other values.
        scarce: For layers that were seen in fewer positions than their weight has columns both numbers, by name.
    """

    examples: str
    count: int
    corrections: str
    changed: Sequence[str]
    scarce: Mapping[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as `--json` prints it."""
        scarce = [{"name": name, "positions": seen, "columns": size} for name, (seen, size) in self.scarce.items()]
        return {
            "examples": self.examples,
            "count": self.count,
            "corrections": self.corrections,
            "changed": list(self.changed),
            "scarce": scarce,
        }


@dataclass(frozen=True)
class Report:
    """What a compression did, or with no `results` would do.

    Attributes:
        plan: What was decided.
        results: One for each layer that was replaced, in the plan's order; empty for a dry run.
        output: The file or folder that was written, if any.
        parameters_before: Floating-point elements of the source, without the running statistics of batch norms.
        nbytes_before: Size of the source on disk.
        nbytes_after: Size of the output on disk; for a dry run, the source's less the tensor bytes that would be saved.
        dropped: Entries of the source that were not carried over, each with its reason.
        seconds: Wall time of everything.
        version: Of lrzip.
        differences: What the program's outputs changed by, for formats that hold a program which can be run.
        costs: What a run costs, where the network and its inputs are known.
        usage: What it takes to load the output, for people, if it takes anything.
        not_compared: Why that is not known, for a program that could not be run.
        calibrated: By what ranks and factors were chosen, where that was not weights alone.
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
    differences: Sequence[Difference] = ()
    costs: Costs | None = None
    usage: str | None = None
    not_compared: str | None = None
    calibrated: CalibrationSummary | None = None

    @property
    def parameters_after(self) -> int:
        """Floating-point elements of the output, counted as before."""
        return self.parameters_before - self.plan.parameters_saved

    @property
    def ratio(self) -> float:
        """Parameters before over parameters after."""
        return self.parameters_before / self.parameters_after

    @property
    def max_error(self) -> float | None:
        """Largest relative Frobenius error of any replaced layer."""
        return max((result.error for result in self.results), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        results = {result.decision.layer.weight.name: result for result in self.results}
        return {
            "schema": SCHEMA,
            "lrzip": self.version,
            "input": self.plan.source,
            "output": str(self.output) if self.output else None,
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
                _layer(decision, results.get(decision.layer.weight.name))
                | (self.costs.layers[decision.layer.name].to_dict() if self.costs else {})
                for decision in self.plan.factorize
            ],
            "kept": [{"name": keep.name, "tensor": keep.tensor.name, "reason": keep.reason} for keep in self.plan.keep],
            "dropped": [{"name": name, "reason": reason} for name, reason in self.dropped],
            "differences": [difference.to_dict() for difference in self.differences],
            "not_compared": self.not_compared,
        } | ({"calibration": self.calibrated.to_dict()} if self.calibrated else {})


def _layer(decision: Factorize, result: LayerResult | None) -> dict[str, Any]:
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

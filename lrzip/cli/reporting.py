"""Print the report of a compression."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from lrzip.cli.console import (
    costs_text,
    count_text,
    print_entry,
    print_kept,
    print_table,
    printable,
    shape_text,
    size_text,
)
from lrzip.cli.messages import with_flags

if TYPE_CHECKING:
    from lrzip.core.budget_use import BudgetUse
    from lrzip.core.report import CalibrationSummary, Report


_EXPENDABLE = ("kind", "MACs", "predicted loss", "shape", "then")
"""Columns that a narrow terminal hides, the first ones first."""


def _table(report: "Report") -> dict[str, list[str]]:
    """Return the columns of the table."""
    from lrzip.decompositions import DEFAULT_DECOMPOSITION

    decisions = report.plan.factorize
    table = {
        "layer": [decision.group.name for decision in decisions],
        "kind": [str(decision.layer.kind) for decision in decisions],
        "shape": [shape_text(decision.layer.weight.shape) for decision in decisions],
        "decomposition": [decision.decomposition for decision in decisions],
        "rank": [", ".join(map(str, decision.ranks)) for decision in decisions],
        "parameters": [f"{decision.parameters_before:,}" for decision in decisions],
        "after": [f"{decision.parameters_after:,}" for decision in decisions],
    }
    if set(table["decomposition"]) <= {DEFAULT_DECOMPOSITION}:
        del table["decomposition"]
    if report.plan.budget:
        table["predicted loss"] = [f"{decision.predicted_loss or 0:.4g}" for decision in decisions]
    if report.results:
        table["error"] = [f"{result.error:.4f}" for result in report.results]
    seen = [result.output_error for result in report.results]
    if any(error is not None for error in seen):
        table["of outputs"] = ["" if error is None else f"{error:.4f}" for error in seen]
    if report.costs:
        costs = [report.costs.layers[decision.group.name] for decision in decisions]
        table["MACs"] = [count_text(cost.macs_before) for cost in costs]
        table["then"] = [count_text(cost.macs_after) for cost in costs]
        if report.costs.latency:
            table["faster"] = [f"{cost.latency.speedup:.2f}×" if cost.latency else "" for cost in costs]
    return table


def _budget_text(spent: "BudgetUse") -> str:
    """Return the use of a budget in one line."""
    gap = spent.predicted_loss - spent.bound
    proof = (
        "the least possible" if gap <= 1e-9 * spent.predicted_loss else f"at most {gap:.2g} above the least possible"
    )
    return (
        f"Budget: {spent.used:,} of {spent.limit:,} {spent.unit} used ({spent.limit - spent.used:,} left); "
        f"predicted loss ({spent.objective}) {spent.predicted_loss:.4g}, {proof}"
    )


def _calibrated_text(seen: "CalibrationSummary") -> str:
    """Return a line about a calibration, and another one if there were too few samples."""
    text = f"Calibrated on {seen.count} samples of {printable(seen.examples)}, corrections: {seen.corrections}"
    if seen.changed:
        text += f"; {len(seen.changed)} other tensors have new values"
    for remark in seen.remarks:
        text += f"\n{printable(remark)}"
    if seen.scarce:
        name, (positions, columns) = next(iter(seen.scarce.items()))
        text += (
            f"\nFew samples for {len(seen.scarce)} layers, whose factors fit the weight in unobserved directions: "
            f"`{printable(name)}` has {positions} spatial positions and {columns} columns"
        )
    return text


def print_report(console: Console, report: "Report") -> None:
    """Print a report: layers, kept tensors and totals."""
    table = _table(report)
    if report.plan.factorize:
        print_table(console, list(table), list(zip(*table.values(), strict=True)), expendable=_EXPENDABLE)
    print_entry(console, report.entry)
    print_kept(console, report.plan.keep)
    for name, reason in report.dropped:
        console.print(Text(printable(f"Left out: {name}: {reason}.")), soft_wrap=True)
    count = len(report.plan.factorize)
    console.print(
        f"\n{count} layer{'s' if count != 1 else ''} factorized: "
        f"{report.parameters_before:,} → {report.parameters_after:,} parameters ({report.ratio:.2f} times smaller), "
        f"{size_text(report.nbytes_before)} → {size_text(report.nbytes_after)}",
        soft_wrap=True,
    )
    if report.calibrated:
        console.print(Text(_calibrated_text(report.calibrated)), soft_wrap=True)
    if report.costs:
        console.print(costs_text(report.costs))
    if report.plan.budget:
        console.print(Text(_budget_text(report.plan.budget)), soft_wrap=True)
    if report.differences:
        worst = max(report.differences, key=lambda difference: difference.relative)
        where = f"`{worst.output}`, on {report.comparison.inputs}"
        text = f"Outputs differ by {worst.relative:.2g} (relative) at most, {where}"
        console.print(Text(printable(text)), soft_wrap=True)
    if report.not_compared:
        what = "Some outputs" if report.differences else "Outputs"
        text = f"{what} were not compared: {with_flags(report.not_compared)}"
        console.print(Text(printable(text)), soft_wrap=True)
    for note in report.notes:
        console.print(Text(printable(with_flags(note))), soft_wrap=True)
    if report.output:
        where = "standard output" if str(report.output) == "-" else printable(str(report.output))
        console.print(Text(f"Wrote {where} in {report.seconds:.1f} s"), soft_wrap=True)
        if report.usage:
            console.print(Text(report.usage), soft_wrap=True)
    else:
        console.print("Nothing was written: this was a dry run")

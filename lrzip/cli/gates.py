"""Gates `--min-ratio` and `--max-error`, which let a script detect an insufficient result by the exit code."""

import sys
from typing import TYPE_CHECKING

import typer

from lrzip.cli.console import printable

if TYPE_CHECKING:
    from lrzip.core.report import Report


def check_gates(report: "Report", min_ratio: float | None, max_error: float | None) -> None:
    """Print the gates that a compression fails, and exit with 3 if there are any."""
    failures = _failed_gates(report, min_ratio, max_error)
    for failure in failures:
        print(f"lrzip: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(3)


def _failed_gates(report: "Report", min_ratio: float | None, max_error: float | None) -> list[str]:
    failures = []
    if min_ratio is not None and report.ratio < min_ratio:
        failures.append(
            f"Gate failed: the result is {report.ratio:.3f} times smaller, `--min-ratio` asks for {min_ratio:g}."
        )
    if max_error is not None and report.max_error is not None and report.max_error > max_error:
        worst = max(report.results, key=lambda result: result.error)
        name = printable(worst.decision.group.name)
        failures.append(f"Gate failed: the error of `{name}` is {worst.error:.3f}, `--max-error` allows {max_error:g}.")
    return failures

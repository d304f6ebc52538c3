"""The command `lrzip compress --budget` with several amounts: plans side by side."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lrzip.cli.commands import Given
from lrzip.cli.console import count_text, layer_progress, print_table, printable, show_result, size_text
from lrzip.cli.files import checkpoint_path
from lrzip.cli.learning import score_text, scores_text
from lrzip.core.output_options import CompressOutputs, Overwriting, Printing

if TYPE_CHECKING:
    from lrzip.api.curve import Curve
    from lrzip.core.report import Report


_EXPENDABLE = ("size", "layers", "at best", "unused", "MACs")


def show_curve(given: Given, keywords: dict[str, Any]) -> None:
    """Plan for several budgets, and show the plans side by side.

    Args:
        given: The command line.
        keywords: Keywords of `compress`, with data to measure on.
    """
    from lrzip.api.curve import curve
    from lrzip.api.keywords import CurveOptions
    from lrzip.cli.drawing import check_picture, draw_curve, save_picture

    plot, printing = given[CompressOutputs].plot, given[Printing]
    planning = {name: value for name, value in keywords.items() if name in CurveOptions.__annotations__}
    with checkpoint_path(given.checkpoint) as source, layer_progress(quiet=printing.quiet) as progress:
        if plot:
            check_picture(plot, source, force=given[Overwriting].force)
        with redirect_stdout(sys.stderr):
            found = curve(source, keywords["budget"], progress=progress, **planning)
        found = replace(found, source=given.checkpoint or "-")
        if plot:
            save_picture(draw_curve(found), plot)
    show_result(printing, found.to_dict, lambda console: _print(console, found), to_stdout=False)


def _print(console: Console, found: "Curve") -> None:
    rows = _rows(found)
    print_table(console, list(rows[0]), [list(row.values()) for row in rows], expendable=_EXPENDABLE)
    if found.dense:
        scores = f"{scores_text(found.dense.scores)} on {found.dense.examples} validation samples"
        console.print(Text("\n" + printable(f"Dense network: {scores}")))
    console.print("\nNothing was written: this was a dry run")


def _rows(found: "Curve") -> list[dict[str, str]]:
    """Return the rows of the table, one for each plan."""
    rows = [_row(point) for point in found.points]
    for row, evaluation in zip(rows, found.measured, strict=False):
        row |= {printable(name): score_text(name, value) for name, value in evaluation.scores.items()}
    return rows


def _row(report: "Report") -> dict[str, str]:
    spent = report.plan.budget
    assert spent, "every plan of a curve is for a budget"
    row = {
        "budget": f"{spent.limit:,}",
        "unused": f"{spent.limit - spent.used:,}",
        "layers": str(len(report.plan.factorize)),
        "parameters": f"{report.parameters_after:,}",
        "smaller": f"{report.ratio:.2f}×",
        "size": size_text(report.nbytes_after),
        "predicted loss": f"{spent.predicted_loss:.4g}",
        "at best": f"{spent.bound:.4g}",
    }
    return row | ({"MACs": count_text(report.costs.macs_after)} if report.costs else {})

"""`lrzip compress --budget` with several amounts: plans beside each other."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from lrzip.cli.console import layer_progress, make_table, model_path, print_json, printable, size_text, stdout
from lrzip.cli.learning import score_text, scores_text

if TYPE_CHECKING:
    from lrzip.api.curve import Curve
    from lrzip.core.report import Report


def show_curve(
    model: str | None,
    budgets: str,
    plot: Path | None,
    *,
    json: bool,
    quiet: bool,
    force: bool,
    options: Mapping[str, Any],
) -> None:
    """Plan for several budgets, and show the plans beside each other."""
    from lrzip.api.curve import curve
    from lrzip.cli.drawing import check_picture, draw_curve

    with model_path(model) as source, layer_progress(quiet=quiet) as progress:
        if plot:
            check_picture(plot, source, force=force)
        with redirect_stdout(sys.stderr):
            found = replace(curve(source, budgets, progress=progress, **options), source=model or "-")
        if plot:
            draw_curve(found, plot)
    if json:
        print_json(found.to_dict(), sys.stdout)
    elif not quiet:
        rows = _rows(found)
        stdout().print(make_table(list(rows[0]), [list(row.values()) for row in rows]))
        if found.dense:
            scores = f"{scores_text(found.dense.scores)} on {found.dense.examples} examples for validation"
            stdout().print(Text("\n" + printable(f"The network as it is: {scores}")))
        stdout().print("\nNothing was written: this was a dry run")


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
    return row | ({"MACs": f"{report.costs.macs_after:,}"} if report.costs else {})

"""`lrzip compress --max-drop`."""

import json as jsonlib
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lrzip.cli.console import goes_to_stdout, make_table, model_path, output_path, print_json, printable, stderr, stdout
from lrzip.cli.learning import score_text, scores_text, training_progress
from lrzip.cli.reporting import print_report
from lrzip.formats.files.atomic import atomic_file, check_output

if TYPE_CHECKING:
    from torch import nn

    from lrzip.search.report import SearchReport
    from lrzip.search.trial import Trial
    from lrzip.training.learning import Learning


def compress_within_bound(
    model: str | None,
    output: Path | None,
    network: "nn.Module | None",
    learning: "Learning",
    plot: Path | None,
    save_plan: Path | None,
    *,
    json: bool,
    quiet: bool,
    options: Mapping[str, Any],
) -> "SearchReport":
    """Compress within a bound, and say what came of it."""
    from lrzip.cli.drawing import check_picture, draw_search
    from lrzip.search.compress_within import compress_within

    assert network is not None
    to_stdout = goes_to_stdout(output, model)
    with model_path(model) as source, output_path(output, to_stdout=to_stdout) as destination:
        if plot:
            check_picture(plot, source, force=options["force"])
        if save_plan:
            check_output(save_plan, source, force=options["force"])
        with redirect_stdout(sys.stderr), training_progress(quiet=quiet, label="dense") as (announce, watch):
            found = compress_within(
                source, destination, model=network, learning=learning, announce=announce, watch=watch, **options
            )
    report = found.report
    shown = Path("-") if to_stdout else report.output
    found = replace(found, report=replace(report, plan=replace(report.plan, source=model or "-"), output=shown))
    if plot:
        draw_search(found, plot)
    if save_plan:
        with atomic_file(save_plan) as temporary:
            temporary.write_text(jsonlib.dumps(found.report.plan.to_dict(), indent=2) + "\n", encoding="utf-8")
    if json:
        print_json(found.to_dict(), sys.stderr if to_stdout else sys.stdout)
    elif not quiet:
        _print(stderr() if to_stdout else stdout(), found)
    if found.interrupted:
        print("lrzip: Interrupted; what was written is the smallest network so far.", file=sys.stderr)
    return found


def _print(console: Console, found: "SearchReport") -> None:
    rows = [_cells(one, found) for one in [found.dense, *found.trials]]
    console.print(make_table(list(rows[0]), [list(row.values()) for row in rows]))
    console.print()
    print_report(console, found.report)
    before, after = (one.scores[found.metric] for one in (found.dense, found.best))
    change = f"{found.metric} {score_text(found.metric, before)} → {score_text(found.metric, after)}"
    allowed = f"{found.max_drop:g} {'points' if found.unit != 1 else 'of it'} may be lost"
    known = f", known to ± {found.standard_error:.2f} points" if found.standard_error is not None else ""
    text = f"{change} on {found.sample_counts[1]} examples for validation{known} ({allowed}; strategy {found.strategy})"
    console.print(Text(printable(text)), soft_wrap=True)
    if found.test:
        console.print(Text(printable(f"Test data: {scores_text(found.test[0])} → {scores_text(found.test[1])}")))


def _cells(one: "Trial", found: "SearchReport") -> dict[str, str]:
    what = ", ".join(f"{name} {value}" for name, value in one.action.items() if name not in ("strategy", "dense"))
    return {
        "layer": what or "dense",
        "parameters": f"{one.parameters:,}",
        "smaller": f"{found.dense.parameters / one.parameters:.2f}×",
        "at first": score_text(found.metric, one.before[found.metric]),
        "tuned": score_text(found.metric, one.scores[found.metric]),
        "within": "yes" if one.within else "no",
        "seconds": f"{one.seconds:.1f}",
    }

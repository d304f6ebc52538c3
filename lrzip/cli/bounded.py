"""The command `lrzip compress --max-drop`."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lrzip.cli.commands import Given
from lrzip.cli.console import print_table, printable, show_result
from lrzip.cli.files import checkpoint_path, goes_to_stdout, output_path
from lrzip.cli.learning import score_text, scores_text, training_progress
from lrzip.cli.reporting import print_report
from lrzip.core.declarations import Declared, declared
from lrzip.core.options import BOUND, Factoring, Opening, Selection
from lrzip.core.output_options import CompressOutputs, Destination, Overwriting, Printing
from lrzip.core.training_options import Bound
from lrzip.formats.files.atomic import check_output

if TYPE_CHECKING:
    from torch import nn

    from lrzip.search.report import SearchReport
    from lrzip.search.trial import Trial
    from lrzip.training.learning import Learning


def compress_within_bound(given: Given, learning: "Learning", network: "nn.Module | None") -> "SearchReport":
    """Compress within a bound on the metric, and show the trials and the result.

    Args:
        given: The command line.
        learning: Data, metrics and settings of each brief fine-tune.
        network: The dense architecture.
    """
    to_stdout = goes_to_stdout(given[Destination].output, given.checkpoint)
    found = _searched(given, learning, network, to_stdout=to_stdout)
    plot = given[CompressOutputs].plot
    if plot:
        from lrzip.cli.drawing import draw_search, save_picture

        save_picture(draw_search(found), plot)
    show_result(given[Printing], found.to_dict, lambda console: _print(console, found), to_stdout=to_stdout)
    if found.interrupted:
        print("lrzip: Interrupted; the smallest network so far was written.", file=sys.stderr)
    return found


def _searched(given: Given, learning: "Learning", network: "nn.Module | None", *, to_stdout: bool) -> "SearchReport":
    """Return the result of a search, with its files named as on the command line."""
    from lrzip.cli.drawing import check_picture
    from lrzip.search.compress_within import compress_within

    assert network is not None, "the bound needs an architecture"
    outputs, force = given[CompressOutputs], given[Overwriting].force
    output, quiet = given[Destination].output, given[Printing].quiet
    with checkpoint_path(given.checkpoint) as source, output_path(output, to_stdout=to_stdout) as destination:
        if outputs.plot:
            check_picture(outputs.plot, source, force=force)
        if outputs.save_plan:
            check_output(outputs.save_plan, source, force=force)
        with redirect_stdout(sys.stderr), training_progress(quiet=quiet, label="dense") as (announce, watch):
            found = compress_within(
                source,
                destination,
                model=network,
                learning=learning,
                announce=announce,
                watch=watch,
                **_keywords(given),
            )
    report = found.report
    shown = Path("-") if to_stdout else report.output
    return replace(
        found, report=replace(report, plan=replace(report.plan, source=given.checkpoint or "-"), output=shown)
    )


def _keywords(given: Given) -> dict[str, Any]:
    """Return the other keywords of the search, with those options of `Factoring` that it accepts."""
    bound, how = given[Bound], given[Factoring]
    factoring = {item.name: getattr(how, item.name) for item in declared(Factoring) if not _is_planned(item)}
    return {
        "max_drop": bound.max_drop,
        "strategy": bound.strategy or "global",
        "options": factoring,
        "test": bound.test,
        "log": bound.log,
        "resume": bound.resume,
        **vars(given[Selection]),
        **vars(given[Opening]),
        **vars(given[Overwriting]),
    }


def _is_planned(item: Declared) -> bool:
    """Return whether an option is for plans alone, and not for the search."""
    return bool(item.option.modes) and BOUND not in item.option.modes


def _print(console: Console, found: "SearchReport") -> None:
    rows = [_cells(one, found) for one in [found.dense, *found.trials]]
    print_table(console, list(rows[0]), [list(row.values()) for row in rows], expendable=("at first", "seconds"))
    console.print()
    print_report(console, found.report)
    before, after = (one.scores[found.metric] for one in (found.dense, found.best))
    change = f"{found.metric} {score_text(found.metric, before)} → {score_text(found.metric, after)}"
    allowed = f"{found.max_drop:g} {'percentage points' if found.unit != 1 else 'of it'} may be lost"
    known = f", known to ± {found.standard_error:.2f} percentage points" if found.standard_error is not None else ""
    text = f"{change} on {found.sample_counts[1]} validation samples{known} ({allowed}; strategy {found.strategy})"
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

"""The command `lrzip compress`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lrzip.cli.bounded import compress_within_bound
from lrzip.cli.calibrating import calibration_of
from lrzip.cli.checks import check_options, mode_of
from lrzip.cli.commands import Given, run_as
from lrzip.cli.console import layer_progress, show_result
from lrzip.cli.curves import show_curve
from lrzip.cli.files import checkpoint_path, goes_to_stdout, output_path
from lrzip.cli.gates import check_gates
from lrzip.cli.learning import learning_of
from lrzip.cli.network import load_network
from lrzip.cli.reporting import print_report
from lrzip.cli.verbs import COMPRESS
from lrzip.core.errors import UsageError
from lrzip.core.options import BOUND, CURVE, PLAN
from lrzip.core.output_options import CompressOutputs, Destination, Overwriting, Printing, Writing
from lrzip.core.training_options import DataOptions
from lrzip.formats.files.atomic import atomic_file, check_output

if TYPE_CHECKING:
    from lrzip.core.plan import Plan
    from lrzip.core.report import Report


@run_as(COMPRESS)
def compress(given: Given) -> None:
    """Run `compress` in the mode that the options select."""
    mode = mode_of(given)
    check_options(given, mode)
    run = {PLAN: _compress_by_plan, CURVE: _show_curve, BOUND: _compress_within_bound}[mode]
    run(given)


def _compress_by_plan(given: Given) -> None:
    outputs = given[CompressOutputs]
    to_stdout = goes_to_stdout(given[Destination].output, given.checkpoint) and not given[Writing].dry_run
    keywords = _keywords(given)
    report = _compressed(given, keywords | {"model": load_network(given)}, to_stdout=to_stdout)
    if outputs.save_plan:
        write_plan(report.plan, outputs.save_plan)
    show_result(given[Printing], report.to_dict, lambda console: print_report(console, report), to_stdout=to_stdout)
    check_gates(report, outputs.min_ratio, outputs.max_error)


def _compressed(given: Given, keywords: dict[str, Any], *, to_stdout: bool) -> "Report":
    """Compress by one plan; return the report, with its files named as on the command line."""
    from lrzip.api.compress import compress

    save_plan, output = given[CompressOutputs].save_plan, given[Destination].output
    with checkpoint_path(given.checkpoint) as source, output_path(output, to_stdout=to_stdout) as destination:
        if save_plan:
            check_output(save_plan, source, force=given[Overwriting].force)
        with layer_progress(quiet=given[Printing].quiet) as progress:
            report = compress(source, destination, progress=progress, **keywords)
    shown = Path("-") if to_stdout else output or report.output
    return replace(report, plan=replace(report.plan, source=given.checkpoint or "-"), output=shown)


def _show_curve(given: Given) -> None:
    keywords = _keywords(given)
    learning = learning_of(given, augment=False) if given[DataOptions].data is not None else None
    show_curve(given, keywords | {"model": load_network(given), "learning": learning})


def _compress_within_bound(given: Given) -> None:
    outputs = given[CompressOutputs]
    found = compress_within_bound(given, learning_of(given), load_network(given))
    if outputs.save_plan:
        write_plan(found.report.plan, outputs.save_plan)
    check_gates(found.report, outputs.min_ratio, None)
    if found.interrupted:
        raise typer.Exit(130)


def _keywords(given: Given) -> dict[str, Any]:
    """Return the keywords of the public function, without the network."""
    from lrzip.api.keywords import CompressOptions

    rules = dict(_rule(text) for text in given.values["layers"] or ())
    keywords = given.keywords(CompressOptions.__annotations__)
    return keywords | {"layers": rules, "calibration": calibration_of(given)}


def _rule(text: str) -> tuple[str, str]:
    pattern, found, rule = text.rpartition("=")
    if not found or not pattern:
        raise UsageError(f"`layers` takes GLOB=RULE, such as 'fc*=ratio:4', got `{text}`.")
    return pattern, rule


def write_plan(plan: "Plan", path: Path) -> None:
    """Write a plan file."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")

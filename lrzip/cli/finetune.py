"""The command `lrzip finetune`."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from lrzip.cli.checks import check_options
from lrzip.cli.commands import Given, run_as
from lrzip.cli.console import print_table, printable, show_result
from lrzip.cli.files import checkpoint_path, goes_to_stdout, output_path
from lrzip.cli.learning import distillation_of, preparation_of, score_text, settings_of, training_progress
from lrzip.cli.messages import about_parameters
from lrzip.cli.network import load_network
from lrzip.cli.verbs import FINETUNE
from lrzip.core.output_options import Destination, Printing

if TYPE_CHECKING:
    from lrzip.api.finetune import FinetuneReport


@run_as(FINETUNE)
def finetune(given: Given) -> None:
    """Fine-tune a checkpoint, and show the result."""
    check_options(given)
    to_stdout = goes_to_stdout(given[Destination].output, given.checkpoint)
    report = _finetuned(given, to_stdout=to_stdout)
    if not report.outcome.main:
        return
    output = Path("-") if to_stdout else report.output
    report = replace(report, source=Path(given.checkpoint or "-"), output=output)
    show_result(given[Printing], report.to_dict, lambda console: _print(console, report), to_stdout=to_stdout)
    if report.trouble:
        print(f"lrzip: {about_parameters(report.trouble)}", file=sys.stderr)
        raise typer.Exit(130 if report.outcome.stopped == "interrupted" else 3)


def _finetuned(given: Given, *, to_stdout: bool) -> "FinetuneReport":
    from lrzip.api.finetune import finetune
    from lrzip.api.keywords import FinetuneOptions

    keywords = given.keywords(FinetuneOptions.__annotations__) | {
        "preparation": preparation_of(given),
        "distillation": distillation_of(given),
        "settings": settings_of(given),
    }
    output, quiet = given[Destination].output, given[Printing].quiet
    with checkpoint_path(given.checkpoint) as source, output_path(output, to_stdout=to_stdout) as destination:
        keywords["model"] = load_network(given)
        with redirect_stdout(sys.stderr), training_progress(quiet=quiet, label="finetune") as (_, watch):
            return finetune(source, destination, data=given.values["data"], watch=watch, **keywords)


def _print(console: Console, report: "FinetuneReport") -> None:
    outcome = report.outcome
    for name, reason in report.dropped:
        console.print(Text(printable(f"Left out: {name}: {reason}.")), soft_wrap=True)
    if report.task.remark:
        console.print(f"Labels of sequences: {report.task.remark}.")
    if report.before:
        rows = [
            [
                str(epoch.number),
                "–" if epoch.loss is None else f"{epoch.loss:.4f}",
                *(score_text(name, value) for name, value in epoch.scores.items()),
                f"{epoch.seconds:.1f}",
            ]
            for epoch in outcome.epochs
        ]
        print_table(console, ["epoch", "loss", *report.before, "seconds"], rows)
        change = ", ".join(
            f"{name} {score_text(name, report.before[name])} → {score_text(name, value)}"
            for name, value in report.after.items()
        )
        console.print(f"\n{change} on {report.examples[1]} validation samples, after epoch {outcome.best.number}.")
    else:
        console.print("There is no validation set, so the last state was written.")
    text = f"Wrote {report.output} after {outcome.steps} steps in {outcome.seconds:.1f} s"
    console.print(Text(printable(text)), soft_wrap=True)

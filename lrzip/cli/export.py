"""The command `lrzip export`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from lrzip.cli.checks import check_options
from lrzip.cli.commands import Given, run_as
from lrzip.cli.console import print_entry, printable, show_result
from lrzip.cli.files import checkpoint_path, goes_to_stdout, output_path
from lrzip.cli.messages import with_flags
from lrzip.cli.network import load_network
from lrzip.cli.verbs import EXPORT
from lrzip.core.output_options import Destination, Exporting, Printing

if TYPE_CHECKING:
    from lrzip.api.export import Export


@run_as(EXPORT)
def export(given: Given) -> None:
    """Export a checkpoint, and show the result."""
    from lrzip.api.export import export
    from lrzip.api.keywords import ExportOptions

    check_options(given)
    to = given[Exporting].to
    to_stdout = goes_to_stdout(given[Destination].output, given.checkpoint)
    keywords = given.keywords(ExportOptions.__annotations__)
    with (
        checkpoint_path(given.checkpoint) as source,
        output_path(given[Destination].output, to_stdout=to_stdout) as destination,
    ):
        result = export(source, to, destination, **keywords | {"model": load_network(given)})
    result = replace(result, source=Path(given.checkpoint or "-"), output=Path("-") if to_stdout else result.output)
    show_result(given[Printing], result.to_dict, lambda console: _print(console, result), to_stdout=to_stdout)


def _print(console: Console, result: "Export") -> None:
    print_entry(console, result.entry)
    for name, reason in result.dropped:
        console.print(Text(printable(f"Left out: {name}: {reason}.")), soft_wrap=True)
    for name in result.doubtful:
        text = f"Left unchanged: {name}, which may be factors; `--model` settles it."
        console.print(Text(printable(text)))
    for name in result.fixed:
        console.print(Text(f"The dimension `{name}` is fixed: it is a constant in the network."))
    if result.is_program:
        for text in _checked(result):
            console.print(Text(printable(with_flags(text))), soft_wrap=True)
    merged = f", {len(result.chains)} layers merged" if result.chains else ""
    console.print(Text(printable(f"Wrote {result.tensors} tensors to {result.output}{merged}")), soft_wrap=True)


def _checked(result: "Export") -> Iterator[str]:
    """Yield how much the outputs of a program differ from those of the network, and why others are not compared."""
    if result.differences:
        worst = max(difference.relative for difference in result.differences)
        yield f"Compared with the network: outputs differ by at most {worst:.1e} of their norm."
    if result.not_compared:
        yield f"{'Some outputs were not' if result.differences else 'Not'} compared: {result.not_compared}"

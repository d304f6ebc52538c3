"""Consoles, progress bars and tables: results go to standard output, everything else to standard error."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import wrap
from typing import TYPE_CHECKING, Any, TextIO

from rich import progress as bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lrzip.core.output_options import Printing
from lrzip.core.progress import Progress, silent

if TYPE_CHECKING:
    from lrzip.core.costs import Costs
    from lrzip.core.layers import Keep, Layer
    from lrzip.core.report import EntryChoice


# Wider than any table, so that nothing is cut where no terminal limits the width.
_UNLIMITED = 10_000
_NAMES_A_REASON = 8
_TEXTS = ("layer", "kind", "shape", "decomposition", "spectrum")


class _Console(Console):
    """A console that leaves broken pipes to the caller."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def stdout() -> Console:
    """Return the console for results."""
    return _Console(file=sys.stdout, width=None if sys.stdout.isatty() else _UNLIMITED, highlight=False)


def stderr() -> Console:
    """Return the console for progress, warnings and errors."""
    return _Console(file=sys.stderr, width=None if sys.stderr.isatty() else _UNLIMITED, highlight=False)


def result_stream(*, to_stdout: bool) -> TextIO:
    """Return the stream of a report: standard error if the checkpoint goes to standard output."""
    return sys.stderr if to_stdout else sys.stdout


def result_console(*, to_stdout: bool) -> Console:
    """Return the console of a report: standard error if the checkpoint goes to standard output."""
    return stderr() if to_stdout else stdout()


def print_json(document: Mapping[str, Any], stream: TextIO) -> None:
    """Print one JSON document."""
    stream.write(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def show_result(
    printing: Printing, document: Callable[[], Mapping[str, Any]], draw: Callable[[Console], None], *, to_stdout: bool
) -> None:
    """Print a result as JSON or for people.

    `quiet` silences a result only where it goes to standard error, because the checkpoint takes standard output.

    Args:
        printing: Options of the output on the terminal.
        document: Function that returns the JSON document.
        draw: Function that prints the result to a console.
        to_stdout: Whether the checkpoint goes to standard output.
    """
    if printing.json:
        print_json(document(), result_stream(to_stdout=to_stdout))
    elif not (printing.quiet and to_stdout):
        draw(result_console(to_stdout=to_stdout))


def printable(text: str) -> str:
    """Return a text from a file as one line without control sequences."""
    return "".join(char if char.isprintable() else "�" for char in re.sub(r"\s+", " ", text))


@contextmanager
def layer_progress(*, quiet: bool) -> Iterator[Progress]:
    """Yield a progress callback, which draws bars if standard error is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[layer]}", markup=False),
    )
    with bars.Progress(*columns, console=Console(file=sys.stderr, highlight=False), transient=True) as drawn:
        tasks: dict[str, bars.TaskID] = {}

        def show(phase: str, layer: "Layer", index: int, count: int) -> None:
            if phase not in tasks:
                tasks[phase] = drawn.add_task(phase, total=count, layer="")
            drawn.update(tasks[phase], completed=index, layer=printable(layer.name))

        yield show


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, expendable: Sequence[str] = ()
) -> None:
    """Print a table without breaking a cell, unless the cell alone is wider than the terminal.

    Where the table is wider than the terminal, expendable columns are hidden and named below it; a table that is still
    too wide is left to the terminal, which continues its lines on the next row.

    Args:
        console: The console.
        columns: Headings.
        rows: Cells of each row.
        expendable: Headings of the columns that may be hidden, in that order.
    """
    rows = [[_folded(printable(cell), console.width) for cell in row] for row in rows]
    shown, hidden = list(columns), []
    for column in (*(name for name in expendable if name in columns), None):
        picked = [columns.index(name) for name in shown]
        table = _table(shown, [[row[index] for index in picked] for row in rows])
        width = console.measure(table, options=console.options.update(max_width=_UNLIMITED)).maximum
        if column is None or width <= console.width:
            break
        shown.remove(column)
        hidden.append(column)
    terminal, console.width = console.width, max(width, console.width)
    console.print(table)
    console.width = terminal
    if hidden:
        names = [name for name in columns if name in hidden]
        console.print(f"Hidden for lack of width: {', '.join(names)}", soft_wrap=True)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table with texts on the left and numbers on the right."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXTS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _folded(cell: str, width: int) -> str:
    """Return a cell that is wider than the terminal in lines of half its width."""
    return cell if len(cell) <= width else "\n".join(wrap(cell, width // 2))


def print_entry(console: Console, entry: "EntryChoice") -> None:
    """Print which entry of a nested file was taken if others have weights as well."""
    if entry.others:
        text = f"Weights of the entry {entry.key}; others with weights: {', '.join(entry.others)} (`--key` chooses)"
        console.print(Text(printable(text)), soft_wrap=True)


def print_kept(console: Console, keep: Sequence["Keep"]) -> None:
    """Print the tensors that are kept, grouped by reason."""
    groups: dict[str, list[str]] = {}
    for item in keep:
        groups.setdefault(item.reason, []).append(item.name)
    if not groups:
        return
    console.print(Text("\nLeft unchanged", style="bold"))
    for reason, names in groups.items():
        more = f", … {len(names) - _NAMES_A_REASON} more" if len(names) > _NAMES_A_REASON else ""
        listed = ", ".join(names[:_NAMES_A_REASON]) + more
        noun = {"a vector": "vector", "a scalar": "scalar"}.get(reason)
        text = f"{len(names)} {noun}{'s' if len(names) > 1 else ''}" if noun else f"{listed}: {reason}"
        console.print(Text("  " + printable(text)), soft_wrap=True)


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as `64×3×3×3`."""
    return "×".join(map(str, shape))


def size_text(nbytes: int) -> str:
    """Return a number of bytes as `1.1 MB`."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.{0 if unit == 'B' else 1}f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def count_text(count: int | None) -> str:
    """Return a count, or a dash if it is not known."""
    return "–" if count is None else f"{count:,}"


def costs_text(costs: "Costs") -> str:
    """Return the costs of a run of the dense and the factorized network, in one line."""
    text = _macs_text(costs)
    if costs.latency:
        dense, factorized = 1e3 * costs.latency.dense, 1e3 * costs.latency.factorized
        text += f", {dense:.2f} → {factorized:.2f} ms a run here ({costs.latency.speedup:.2f} times faster)"
    run = ", ".join(f"{name} {shape_text(shape)}" if shape else name for name, shape in costs.inputs.items())
    text += f" at {run}" if run else ""
    text += f", of one of {costs.samples} samples" if costs.samples > 1 else ""
    text += f"; not counted: {costs.not_counted}" if costs.not_counted and costs.macs_after is not None else ""
    return printable(text + (f"; not timed: {costs.not_timed}" if costs.not_timed else ""))


def _macs_text(costs: "Costs") -> str:
    before, after = costs.macs_before, costs.macs_after
    if before is None or after is None:
        return f"Multiply-accumulates are not known: {costs.not_counted}"
    if costs.not_counted:
        return f"At least {before:,} → {after:,} multiply-accumulates"
    return f"{before:,} → {after:,} multiply-accumulates ({before / max(after, 1):.2f} times fewer)"

"""Terminals, pipes and progress: how results and people are told apart."""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import progress as bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.layers import Keep, Layer
from lrzip.core.progress import Progress, silent

if TYPE_CHECKING:
    from torch import nn

    from lrzip.core.costs import Costs


# Wider than any table, so that nothing is cut where no terminal limits the width.
_UNLIMITED = 10_000
_NAMES_A_REASON = 8
_TEXTS = ("layer", "kind", "shape", "spectrum")


def stdout() -> Console:
    """Return the console of results."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _UNLIMITED, highlight=False)


def stderr() -> Console:
    """Return the console of people."""
    return Console(file=sys.stderr, width=None if sys.stderr.isatty() else _UNLIMITED, highlight=False)


def print_json(document: Mapping[str, Any], stream: Any) -> None:
    """Print one JSON document."""
    stream.write(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def printable(text: str) -> str:
    """Return a text of a file as one line without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else "�" for char in re.sub(r"\s+", " ", text))


@contextmanager
def model_path(model: str | None) -> Iterator[Path]:
    """Yield the path of MODEL, with standard input spooled to a temporary file, since readers seek."""
    if model not in (None, "-"):
        yield Path(str(model))
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("No MODEL, and standard input is a terminal. Name a checkpoint file.")
    with tempfile.TemporaryDirectory(prefix="lrzip-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield path
        except LrzipError as error:
            raise type(error)(str(error).replace(str(path), "standard input")) from error


def goes_to_stdout(output: Path | None, model: str | None) -> bool:
    """Tell whether a result goes to standard output: where asked, and where the model came from standard input."""
    return str(output) == "-" if output else model in (None, "-")


@contextmanager
def output_path(output: Path | None, *, to_stdout: bool) -> Iterator[Path | None]:
    """Yield where to write; what is meant for stdout goes to a temporary file that is copied when it is complete."""
    if not to_stdout:
        yield output
        return
    if sys.stdout.isatty():
        raise UsageError("The output is binary and standard output is a terminal. Name a file with `-o`.")
    with tempfile.TemporaryDirectory(prefix="lrzip-") as folder:
        path = Path(folder) / "stdout"
        yield path
        if path.is_dir():
            raise LrzipError("A folder of shards cannot go to standard output. Name a folder with `-o`.")
        if any(other != path for other in Path(folder).iterdir()):
            raise LrzipError("A model with external data cannot go to standard output. Name a file with `-o`.")
        if path.exists():
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


@contextmanager
def layer_progress(*, quiet: bool) -> Iterator[Progress]:
    """Yield a progress callback that draws bars where standard error is a terminal, else does nothing."""
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

        def show(phase: str, layer: Layer, index: int, count: int) -> None:
            if phase not in tasks:
                tasks[phase] = drawn.add_task(phase, total=count, layer="")
            drawn.update(tasks[phase], completed=index, layer=printable(layer.name))

        yield show


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of texts, which fold, and numbers, which do not."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        if column in _TEXTS:
            table.add_column(column, overflow="fold", no_wrap=not sys.stdout.isatty())
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def fitting_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, expendable: Sequence[str]
) -> tuple[Table, list[str]]:
    """Return a table without as many of the expendable columns, the last first, as the terminal is too narrow for."""
    hidden: list[str] = []
    for column in [*reversed(expendable), None]:
        shown = [index for index, name in enumerate(columns) if name not in hidden]
        table = make_table([columns[index] for index in shown], [[row[index] for index in shown] for row in rows])
        natural = console.measure(table, options=console.options.update(max_width=_UNLIMITED)).maximum
        if column is None or natural <= console.width:
            break
        hidden.insert(0, column)
    return table, hidden


def print_kept(console: Console, keep: Sequence[Keep]) -> None:
    """Print what stays whole, grouped by reason."""
    groups: dict[str, list[str]] = {}
    for item in keep:
        groups.setdefault(item.reason, []).append(item.name)
    if not groups:
        return
    console.print(Text("\nKept whole", style="bold"))
    for reason, names in groups.items():
        more = f", … {len(names) - _NAMES_A_REASON} more" if len(names) > _NAMES_A_REASON else ""
        listed = ", ".join(names[:_NAMES_A_REASON]) + more
        noun = {"a vector": "vector", "a scalar": "scalar"}.get(reason)
        text = f"{len(names)} {noun}{'s' if len(names) > 1 else ''}" if noun else f"{listed}: {reason}"
        console.print(Text("  " + printable(text)), soft_wrap=True)


def load_network(spec: str | None, arguments: Sequence[str] | None) -> "nn.Module | None":
    """Return the network of `--model` and `--model-arg`, if there is one; what its code prints goes to people."""
    if spec is None:
        if arguments:
            raise UsageError("`--model-arg` says how to build the network of `--model`, which is missing.")
        return None
    from lrzip.networks.build import build, parse_arguments

    with redirect_stdout(sys.stderr):
        return build(spec, parse_arguments(arguments or ()))


def set_threads(threads: int | None) -> None:
    """Limit the threads that torch computes with."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def replace_unprintable() -> None:
    """Make streams that cannot encode a character print `?` for it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def close_stdout() -> None:
    """Point standard output to nowhere, after its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def given_options(context: typer.Context) -> set[str]:
    """Return the options that stand on the command line, as `--energy`."""
    sources = ((parameter, context.get_parameter_source(str(parameter.name))) for parameter in context.command.params)
    there = (parameter for parameter, source in sources if source is not None and source.name == "COMMANDLINE")
    return {option for parameter in there for option in parameter.opts}


def refuse(given: Collection[str], unfit: Iterable[str], message: str) -> None:
    """Raise a UsageError that names the first option of those which do not fit that was given, if any was."""
    for option in unfit:
        if option in given:
            raise UsageError(message.format(option))


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


def costs_text(costs: "Costs") -> str:
    """Return in one line what a run of a network costs, dense and factorized."""
    fewer = costs.macs_before / max(costs.macs_after, 1)
    text = f"{costs.macs_before:,} → {costs.macs_after:,} multiply-accumulates ({fewer:.2f} times fewer)"
    if costs.latency is None:
        return text
    dense, factorized = 1e3 * costs.latency.dense, 1e3 * costs.latency.factorized
    return f"{text}, {dense:.2f} → {factorized:.2f} ms a run here ({costs.latency.speedup:.2f} times faster)"

"""Build the commands from groups of options: parameters and their help, and the values that were given."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from inspect import Parameter, Signature
from typing import Annotated, Any, TypeVar

import typer

from lrzip.cli.messages import about_parameters
from lrzip.core.declarations import Declared, Group, declared

Chosen = TypeVar("Chosen", bound=Group)
Run = Callable[..., None]


@dataclass(frozen=True)
class Command:
    """A command and its options.

    Attributes:
        name: Name on the command line.
        summary: What the command does, in one sentence.
        example: Example of a command line.
        groups: Groups of its options, in the order of the help.
        required: Whether the help shows the checkpoint as required; it still reads standard input without one.
        needed: Names of the options that must be given.
    """

    name: str
    summary: str
    example: str
    groups: tuple[type[Group], ...]
    required: bool = False
    needed: frozenset[str] = frozenset()

    @cached_property
    def options(self) -> tuple[Declared, ...]:
        """The options that have a flag."""
        return tuple(item for item in declared(*self.groups) if item.flag)


@dataclass(frozen=True)
class Given:
    """The values of a command line.

    Attributes:
        command: The command.
        checkpoint: Path of the checkpoint; None or `-` for standard input.
        values: Values by option name, None for options without a default that are not given.
        names: Names of the options that were given on the command line.
    """

    command: Command
    checkpoint: str | None
    values: Mapping[str, Any]
    names: frozenset[str]

    def __getitem__(self, group: type[Chosen]) -> Chosen:
        """Return a group with the values of the command line, and its defaults for all others."""
        return group(**self.keywords({item.name for item in fields(group)}))

    def keywords(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the values of some options that are not None, by name."""
        return {name: self.values[name] for name in names if self.values.get(name) is not None}


class Stopped(Exception):
    """Carry an interruption or a broken pipe past Typer, which would exit with codes of its own and no message."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def run_as(command: Command) -> Callable[[Callable[[Given], None]], Run]:
    """Return a decorator that gives a function the parameters of a command, as Typer reads them."""

    def decorate(function: Callable[[Given], None]) -> Run:
        def run(context: typer.Context, checkpoint: str | None, **values: Any) -> None:
            sources = {name: context.get_parameter_source(name) for name in values}
            names = frozenset(n for n, source in sources.items() if source and source.name == "COMMANDLINE")
            _limit_threads(values.get("threads"))
            try:
                function(Given(command, checkpoint, values, names))
                sys.stdout.flush()
            except (KeyboardInterrupt, BrokenPipeError) as cause:
                raise Stopped(cause) from cause

        vars(run)["__signature__"] = Signature([_context(), _checkpoint(), *_parameters(command)])
        run.__name__, run.__doc__ = command.name, command.summary
        return run

    return decorate


def _limit_threads(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _context() -> Parameter:
    return Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _checkpoint() -> Parameter:
    text = "File or folder; `-`, or none if standard input is no terminal, reads standard input."
    info = typer.Argument(metavar="CHECKPOINT", help=text, show_default=False)
    return Parameter("checkpoint", Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, info])


def _parameters(command: Command) -> Iterator[Parameter]:
    for item in command.options:
        parameter = _parameter(item)
        yield parameter.replace(default=Parameter.empty) if item.name in command.needed else parameter


def _parameter(item: Declared) -> Parameter:
    option = item.option
    info = typer.Option(
        *filter(None, (option.short, item.flag)),
        help=help_of(item),
        metavar=option.metavar,
        min=option.minimum,
        max=option.maximum,
        show_default=option.shown or True,
        rich_help_panel=item.heading,
    )
    kind: Any = option.parsed or item.type
    default = None if option.parsed else item.default
    return Parameter(item.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def help_of(item: Declared) -> str:
    """Return the description of an option, with flags for the names of options."""
    repeatable = " Repeatable." if item.is_repeatable else ""
    return about_parameters(item.option.help).replace("`", "") + repeatable

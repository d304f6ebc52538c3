"""Declare options once, as fields of dataclasses: flags, help texts and Python keywords are derived from them."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin

Text = TypeVar("Text", bound=Callable[..., Any])


class Group(Protocol):
    """A frozen dataclass whose fields are options.

    Attributes:
        heading: Heading of its options in the help.
    """

    heading: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Chosen = TypeVar("Chosen", bound=Group)


@dataclass(frozen=True)
class Option:
    """How a field is given on the command line.

    Attributes:
        help: Description, with the Python names of other options in backticks.
        flag: Flag, or None for keywords that exist only in Python.
        short: Short flag.
        heading: Heading in the help; None for that of the group.
        metavar: Placeholder of the value.
        shown: Default to show in the help instead of that of the field.
        minimum: Smallest value of an integer.
        maximum: Largest value of an integer.
        modes: Modes of the command that take the option; empty for all.
        goes_with: Names of options, at least one of which must also be given.
        needs: Names of options that must all be given as well.
        excludes: Names of options that must not be given as well.
        parsed: Type on the command line, where it differs from the type of the field.
    """

    help: str
    flag: str | None
    short: str | None = None
    heading: str | None = None
    metavar: str | None = None
    shown: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    modes: tuple[str, ...] = ()
    goes_with: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    parsed: Any = None


@dataclass(frozen=True)
class Declared:
    """An option with its name, type and default.

    Attributes:
        name: Name of the field, which is the keyword in Python.
        type: Type of the keyword in Python.
        default: Default on the command line and in Python.
        heading: Heading in the help.
        option: The rest of the declaration.
    """

    name: str
    type: Any
    default: Any
    heading: str
    option: Option

    @property
    def flag(self) -> str:
        """The long flag."""
        return self.option.flag or ""

    @property
    def is_repeatable(self) -> bool:
        """Whether the flag may be given several times."""
        return any(get_origin(kind) is list for kind in get_args(self.option.parsed))

    @property
    def usage(self) -> str:
        """The flag with the placeholder of its value, if it takes one."""
        return f"{self.flag} {self.option.metavar}" if self.option.metavar else self.flag


def option(default: Any, help: str, *, flag: str = "", **more: Any) -> Any:  # noqa: A002
    """Return a dataclass field that declares an option; its flag defaults to `--` and its name."""
    return field(default=default, metadata={"option": Option(help, flag, **more)})


def keyword(default: Any, help: str) -> Any:  # noqa: A002
    """Return a dataclass field that declares a Python keyword without a flag."""
    return field(default=default, metadata={"option": Option(help, None)})


def declared(*groups: type[Group]) -> Iterator[Declared]:
    """Yield the options of groups, in order."""
    for group in groups:
        for item in fields(group):
            found: Option = item.metadata["option"]
            if found.flag == "":
                found = replace(found, flag=f"--{item.name.replace('_', '-')}")
            yield Declared(item.name, item.type, item.default, found.heading or group.heading, found)


class Options:
    """The keywords that a public function was called with, by group."""

    def __init__(self, verb: str, keywords: type, given: Mapping[str, Any]) -> None:
        """Store the keywords after checking their names.

        Args:
            verb: Name of the function.
            keywords: TypedDict of its keywords.
            given: The keywords of the call.

        Raises:
            TypeError: A keyword is unknown.
        """
        unknown = next((name for name in given if name not in keywords.__annotations__), None)
        if unknown is not None:
            raise TypeError(f"{verb}() got an unexpected keyword argument '{unknown}'")
        self._given = given

    def __getitem__(self, group: type[Chosen]) -> Chosen:
        """Return a group with the given values, and its defaults for all others."""
        names = {item.name for item in fields(group)}
        return group(**{name: value for name, value in self._given.items() if name in names})


def documented(keywords: type, *groups: type[Group]) -> Callable[[Text], Text]:
    """Return a decorator that adds the keywords of a TypedDict to the signature and the docstring of a function.

    Args:
        keywords: TypedDict of the function's keywords.
        groups: Groups that declare them.
    """
    found = {item.name: item for item in declared(*groups)}
    items = [found[name] for name in keywords.__annotations__]

    def document(function: Text) -> Text:
        before = inspect.signature(function)
        positional = [parameter for parameter in before.parameters.values() if parameter.kind is not _KEYWORDS]
        named = [
            inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=item.type)
            for item in items
        ]
        vars(function)["__signature__"] = before.replace(parameters=[*positional, *named])
        function.__doc__ = _with_arguments(function.__doc__ or "", items)
        return function

    return document


_KEYWORDS = inspect.Parameter.VAR_KEYWORD


def _with_arguments(text: str, items: Sequence[Declared]) -> str:
    """Return a docstring in which the entry of `**options` is replaced by a line for each keyword."""
    lines = [f"        {item.name}: {item.option.help}" for item in items]
    return re.sub(
        r"        \*\*options: .*?\n(?=\n|        \w)", "\n".join(lines) + "\n", text, count=1, flags=re.DOTALL
    )

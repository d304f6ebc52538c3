"""Commands that are built from groups of options."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import typer
from typer.testing import CliRunner

from lrzip.cli.commands import Command, Given, run_as
from lrzip.core.declarations import keyword, option


@dataclass(frozen=True)
class Baking:
    heading: ClassVar[str] = "Kitchen"

    oven_heat: float = option(180.0, "Degrees; see `names`.", metavar="DEGREES")
    names: tuple[str, ...] = option((), "Names.", flag="--name", parsed=list[str] | None)
    recipe: Path | None = option(None, "A file.")
    cook: object = keyword(None, "Somebody.")


COMMAND = Command("bake", "Bake something.", "bake cake", (Baking,))


def baked(*arguments: str) -> Given:
    """Return what a command gets for arguments."""
    found: list[Given] = []
    app = typer.Typer()
    app.command()(run_as(COMMAND)(found.append))
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return found[0]


def test_groups_hold_given_values_and_defaults() -> None:
    given = baked("cake", "--name", "a", "--name", "b")
    assert given.checkpoint == "cake"
    assert given.names == {"names"}
    assert given[Baking] == Baking(names=["a", "b"])  # type: ignore[arg-type]


def test_a_default_on_the_command_line_counts_as_given() -> None:
    assert baked("--oven-heat", "180").names == {"oven_heat"}
    assert baked().checkpoint is None


def test_keywords_are_the_values_that_are_there() -> None:
    given = baked("--recipe", "r.txt")
    assert given.keywords(["oven_heat", "names", "recipe", "cook"]) == {"oven_heat": 180.0, "recipe": Path("r.txt")}


def test_parameters_in_descriptions_are_shown_as_flags() -> None:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(run_as(Command("see", "See.", "see", (Baking,)))(lambda _: None))
    text = CliRunner().invoke(app, ["--help"]).output
    assert "--oven-heat DEGREES" in text
    assert "Degrees; see names." in text  # `names` belongs to no real command
    assert "--cook" not in text

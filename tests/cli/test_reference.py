"""The reference page is that of the declared options."""

from pathlib import Path

import pytest

import lrzip
from lrzip.cli.commands import Command
from lrzip.cli.reference import reference
from lrzip.cli.verbs import COMMANDS
from tests.support.shell import run

PAGE = Path(lrzip.__file__).parents[1] / "docs" / "cli.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `python -m lrzip.cli.reference > docs/cli.md`"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_of_the_help_is_in_the_page(command: Command) -> None:
    name = command.name
    lines = [line for line in run(name, "--help").stdout.decode().splitlines() if line.startswith("  -")]
    flags = {word for line in lines for word in line.split()[:2] if word.startswith("--")} - {"--help"}
    section = reference().split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert len(flags) >= 10
    assert {flag for flag in flags if f"{flag} " not in section and f"{flag}`" not in section} == set()

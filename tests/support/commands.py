"""Command lines without a process."""

from lrzip.cli.commands import Command, Given


def given(command: Command, **values: object) -> Given:
    """Return the values of a command line, with the defaults for all other options."""
    defaults = {item.name: None if item.option.parsed else item.default for item in command.options}
    assert values.keys() <= defaults.keys()
    return Given(command, "model.pt", defaults | values, frozenset(values))

"""The help of a command, with its options grouped by heading."""

from typing import Any

import typer
from typer.core import TyperCommand

from lrzip.cli.verbs import COMMANDS

_WITH_CHECKPOINT = {command.name for command in COMMANDS if command.required}


class Grouped(TyperCommand):
    """A command whose help lists options by heading, in the order of the first option of each."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the pieces of the usage, with the checkpoint as required if the command declares that."""
        pieces = super().collect_usage_pieces(ctx)
        return [
            piece.strip("[]") if self.name in _WITH_CHECKPOINT and "OPTIONS" not in piece else piece for piece in pieces
        ]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write arguments and options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                rest = "Arguments" if parameter.param_type_name == "argument" else "Help"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or rest, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)

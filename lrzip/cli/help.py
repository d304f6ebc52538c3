"""Help that lists the options of a command in groups."""

from typing import Any

import typer
from typer.core import TyperCommand


class Grouped(TyperCommand):
    """A command whose help has a heading for each group of options, in the order of the first of each."""

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

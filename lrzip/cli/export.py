"""`lrzip export`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lrzip.cli import options
from lrzip.cli.console import goes_to_stdout, model_path, output_path, print_json, printable, stderr, stdout


def export(
    model: options.Model = None,
    to: Annotated[
        str, typer.Option("--to", help="safetensors, state-dict or dense (multiplied back).", show_default=False)
    ] = ...,  # type: ignore[assignment]
    output: options.Output = None,
    key: options.Key = None,
    trust: options.Trust = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
) -> None:
    """Write a checkpoint as safetensors, a state_dict, or dense again."""
    from lrzip.exporting import export

    to_stdout = goes_to_stdout(output, model)
    with model_path(model) as source, output_path(output, to_stdout=to_stdout) as destination:
        result = export(source, to, destination, key=key, trust=trust, force=force)
    result = replace(result, source=Path(model or "-"), output=Path("-") if to_stdout else result.output)
    if json:
        print_json(result.to_dict(), sys.stderr if to_stdout else sys.stdout)
    elif not quiet:
        console = stderr() if to_stdout else stdout()
        for name, reason in result.dropped:
            console.print(Text(printable(f"Left out: {name}: {reason}.")), soft_wrap=True)
        back = f", {len(result.chains)} layers multiplied back" if result.chains else ""
        console.print(Text(printable(f"Wrote {result.tensors} tensors to {result.output}{back}")), soft_wrap=True)

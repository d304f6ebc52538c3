"""`lrzip export`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text

from lrzip.cli import options
from lrzip.cli.console import (
    goes_to_stdout,
    load_network,
    model_path,
    output_path,
    print_json,
    printable,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from lrzip.core.report import Difference


def export(
    model: options.Model = None,
    to: Annotated[
        str,
        options.output(
            "--to", help="safetensors, state-dict, dense (multiplied back), onnx or pt2.", show_default=False
        ),
    ] = ...,  # type: ignore[assignment]
    output: options.Output = None,
    network: options.Network = None,
    model_arg: options.ModelArg = None,
    input_shape: options.InputShape = None,
    key: options.Key = None,
    trust: options.Trust = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
) -> None:
    """Write a checkpoint as safetensors, a state_dict, dense again, or as an ONNX or torch.export program."""
    from lrzip.api.export import export

    to_stdout = goes_to_stdout(output, model)
    with model_path(model) as source, output_path(output, to_stdout=to_stdout) as destination:
        result = export(
            source,
            to,
            destination,
            model=load_network(network, model_arg),
            input_shapes=input_shape or (),
            key=key,
            trust=trust,
            force=force,
        )
    result = replace(result, source=Path(model or "-"), output=Path("-") if to_stdout else result.output)
    if json:
        print_json(result.to_dict(), sys.stderr if to_stdout else sys.stdout)
    elif not quiet:
        console = stderr() if to_stdout else stdout()
        for name, reason in result.dropped:
            console.print(Text(printable(f"Left out: {name}: {reason}.")), soft_wrap=True)
        for name in result.doubtful:
            console.print(Text(printable(f"Left as it is: {name}, which may be factors; `--model` settles it.")))
        for name in result.fixed:
            console.print(Text(f"The dimension `{name}` is fixed: the network makes a constant of it."))
        if to in ("onnx", "pt2"):
            console.print(Text(_checked(result.differences)))
        back = f", {len(result.chains)} layers multiplied back" if result.chains else ""
        console.print(Text(printable(f"Wrote {result.tensors} tensors to {result.output}{back}")), soft_wrap=True)


def _checked(differences: "Sequence[Difference] | None") -> str:
    if differences is None:
        return "Not compared with the network: onnxruntime is not installed."
    worst = max((difference.relative for difference in differences), default=0.0)
    return f"Compared with the network: outputs differ by at most {worst:.1e} of their norm."

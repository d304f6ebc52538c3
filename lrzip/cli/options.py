"""Options that commands share."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Model: TypeAlias = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A file or folder; `-` or nothing reads standard input.", show_default=False),
]
Only: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="GLOB", help="Take only these layers. A name in full settles doubts."),
]
Skip: TypeAlias = Annotated[list[str] | None, typer.Option("--skip", metavar="GLOB", help="Leave these layers whole.")]
Network: TypeAlias = Annotated[
    str | None,
    typer.Option("--model", metavar="PKG.MOD:NET", help="Your class or function that builds the network; it is run."),
]
ModelArg: TypeAlias = Annotated[
    list[str] | None, typer.Option("--model-arg", metavar="NAME=VALUE", help="Argument of --model; repeatable.")
]
InputShape: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape", metavar="SIZES", help="1,3,32,32 or 1,length=128:int64, for each input; the batch is dynamic."
    ),
]
Key: TypeAlias = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="Entry of a nested file that holds the weights.")
]
Trust: TypeAlias = Annotated[bool, typer.Option("--trust", help="Allow what would run code from the file.")]
Device: TypeAlias = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1.")]
Threads: TypeAlias = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads to compute with.", show_default="all cores")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="OUT", help="Where to write; the suffix names the format, `-` is stdout."),
]

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

# Of data and of training.
Data: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="file.npz, .safetensors or .pt with x and y or train_x, train_y; a folder of images, one subfolder a "
        "class; or pkg.mod:callable that returns a Dataset, a DataLoader, or two.",
    ),
]
Val: TypeAlias = Annotated[
    str | None, typer.Option("--val", metavar="SPEC", help="Validation set, where it is elsewhere.")
]
ValFraction: TypeAlias = Annotated[
    float, typer.Option("--val-fraction", help="Share of the training set to validate on, without --val.")
]
Mean: TypeAlias = Annotated[
    str | None, typer.Option("--mean", metavar="NUMBERS", help="Subtracted from inputs, one a channel.")
]
Std: TypeAlias = Annotated[
    str | None, typer.Option("--std", metavar="NUMBERS", help="That inputs are divided by, one a channel.")
]
Augment: TypeAlias = Annotated[
    str | None, typer.Option("--augment", metavar="NAMES", help="Random changes of training images: crop,flip.")
]
ImageSize: TypeAlias = Annotated[
    int | None, typer.Option("--image-size", min=1, help="Side to which images of folders are resized.")
]
Loss: TypeAlias = Annotated[str, typer.Option("--loss", help="auto, cross_entropy, mse, kl or pkg.mod:fn.")]
LabelSmoothing: TypeAlias = Annotated[
    float, typer.Option("--label-smoothing", help="Share of each label that goes to all classes.")
]
Metric: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="accuracy, top5, r2, rmse, mae or pkg.mod:fn; the first decides.",
        show_default="accuracy or r2",
    ),
]
Teacher: TypeAlias = Annotated[
    str | None,
    typer.Option("--teacher", metavar="DENSE", help="Learn from this checkpoint.", show_default="MODEL itself"),
]
Temperature: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        help="Compare classes with a teacher's as distributions of this temperature.",
        show_default="logits are compared",
    ),
]
TeacherShare: TypeAlias = Annotated[
    float | None,
    typer.Option("--teacher-share", help="Share of a teacher in the loss beside labels.", show_default="0.5"),
]
Optimizer: TypeAlias = Annotated[str, typer.Option("--optimizer", help="adamw, adam or sgd.")]
Lr: TypeAlias = Annotated[
    float | None, typer.Option("--lr", help="Highest learning rate.", show_default="3e-3, sgd 5e-2")
]
WeightDecay: TypeAlias = Annotated[
    float | None,
    typer.Option("--weight-decay", help="Of weights alone.", show_default="adamw 1e-2, sgd 1e-4, adam 0"),
]
BatchSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        help="Examples a step, over all processes.",
        show_default="128, fewer for few examples",
    ),
]
Amp: TypeAlias = Annotated[
    str,
    typer.Option(
        "--amp",
        help="What to compute in, with weights in float32: bf16, fp16, no (float32), or auto, which is bf16 for "
        "convolutions of images on devices that have it.",
    ),
]
FreezeBatchnorm: TypeAlias = Annotated[
    bool, typer.Option("--freeze-batchnorm", help="Keep the running statistics of batch norms.")
]
Workers: TypeAlias = Annotated[int, typer.Option("--workers", min=0, help="Processes that prepare batches.")]

"""Options that commands share."""

from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

# An option under each heading of the help.
ranks = partial(typer.Option, rich_help_panel="Layers and ranks")
factors = partial(typer.Option, rich_help_panel="Factors")
calibration = partial(typer.Option, rich_help_panel="Calibration")
bound = partial(typer.Option, rich_help_panel="Within a bound")
network = partial(typer.Option, rich_help_panel="Network and file")
data = partial(typer.Option, rich_help_panel="Data")
training = partial(typer.Option, rich_help_panel="Training")
sensitivity = partial(typer.Option, rich_help_panel="Sensitivity")
output = partial(typer.Option, rich_help_panel="Output")
Model: TypeAlias = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A file or folder; `-` or nothing reads standard input.", show_default=False),
]
Only: TypeAlias = Annotated[
    list[str] | None, ranks("--only", metavar="GLOB", help="Take only these layers. A name in full settles doubts.")
]
Skip: TypeAlias = Annotated[list[str] | None, ranks("--skip", metavar="GLOB", help="Leave these layers whole.")]
Network: TypeAlias = Annotated[
    str | None,
    network("--model", metavar="PKG.MOD:NET", help="Your class or function that builds the network; it is run."),
]
ModelArg: TypeAlias = Annotated[
    list[str] | None, network("--model-arg", metavar="NAME=VALUE", help="Argument of --model; repeatable.")
]
InputShape: TypeAlias = Annotated[
    list[str] | None,
    network(
        "--input-shape", metavar="SIZES", help="1,3,32,32 or 1,length=128:int64, for each input; the batch is dynamic."
    ),
]
Key: TypeAlias = Annotated[
    str | None, network("--key", metavar="NAME", help="Entry of a nested file that holds the weights.")
]
Trust: TypeAlias = Annotated[bool, network("--trust", help="Allow what would run code from the file.")]
Device: TypeAlias = Annotated[str, network("--device", help="cpu, cuda, cuda:1.")]
Threads: TypeAlias = Annotated[
    int | None, network("--threads", min=1, help="Threads to compute with.", show_default="all cores")
]
Json: TypeAlias = Annotated[bool, output("--json", help="Print one JSON document.")]
Quiet: TypeAlias = Annotated[bool, output("--quiet", "-q", help="Say nothing but errors.")]
Force: TypeAlias = Annotated[bool, output("--force", help="Overwrite an existing output.")]
Output: TypeAlias = Annotated[
    Path | None,
    output("-o", "--output", metavar="OUT", help="Where to write; the suffix names the format, `-` is stdout."),
]
# Of data and of training.
Data: TypeAlias = Annotated[
    str | None,
    data(
        "--data",
        metavar="SPEC",
        help="file.npz, .safetensors or .pt with x and y or train_x, train_y; a folder of images, one subfolder a "
        "class; or pkg.mod:callable that returns a Dataset, a DataLoader, or two.",
    ),
]
Val: TypeAlias = Annotated[str | None, data("--val", metavar="SPEC", help="Validation set, where it is elsewhere.")]
ValFraction: TypeAlias = Annotated[
    float, data("--val-fraction", help="Share of the training set to validate on, without --val.")
]
Mean: TypeAlias = Annotated[
    str | None, data("--mean", metavar="NUMBERS", help="Subtracted from inputs, one a channel.")
]
Std: TypeAlias = Annotated[
    str | None, data("--std", metavar="NUMBERS", help="That inputs are divided by, one a channel.")
]
Augment: TypeAlias = Annotated[
    str | None, data("--augment", metavar="NAMES", help="Random changes of training images: crop,flip.")
]
ImageSize: TypeAlias = Annotated[
    int | None, data("--image-size", min=1, help="Side to which images of folders are resized.")
]
Loss: TypeAlias = Annotated[str, training("--loss", help="auto, cross_entropy, mse, kl or pkg.mod:fn.")]
LabelSmoothing: TypeAlias = Annotated[
    float, training("--label-smoothing", help="Share of each label that goes to all classes.")
]
Metric: TypeAlias = Annotated[
    list[str] | None,
    data(
        "--metric",
        help="accuracy, top5, r2, rmse, mae or pkg.mod:fn; the first decides.",
        show_default="accuracy or r2",
    ),
]
Teacher: TypeAlias = Annotated[
    str | None, training("--teacher", metavar="DENSE", help="Learn from this checkpoint.", show_default="MODEL itself")
]
Temperature: TypeAlias = Annotated[
    float | None,
    training(
        "--temperature",
        help="Compare classes with a teacher's as distributions of this temperature.",
        show_default="logits are compared",
    ),
]
TeacherShare: TypeAlias = Annotated[
    float | None, training("--teacher-share", help="Share of a teacher in the loss beside labels.", show_default="0.5")
]
Optimizer: TypeAlias = Annotated[str, training("--optimizer", help="adamw, adam or sgd.")]
Lr: TypeAlias = Annotated[float | None, training("--lr", help="Highest learning rate.", show_default="3e-3, sgd 5e-2")]
WeightDecay: TypeAlias = Annotated[
    float | None, training("--weight-decay", help="Of weights alone.", show_default="adamw 1e-2, sgd 1e-4, adam 0")
]
BatchSize: TypeAlias = Annotated[
    int | None,
    training("--batch-size", help="Examples a step, over all processes.", show_default="128, fewer for few examples"),
]
Amp: TypeAlias = Annotated[
    str,
    training(
        "--amp",
        help="What to compute in, with weights in float32: bf16, fp16, no (float32), or auto, which is bf16 for "
        "convolutions of images on devices that have it.",
    ),
]
FreezeBatchnorm: TypeAlias = Annotated[
    bool, training("--freeze-batchnorm", help="Keep the running statistics of batch norms.")
]
Workers: TypeAlias = Annotated[int, training("--workers", min=0, help="Processes that prepare batches.")]

"""`lrzip finetune`."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import progress as bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from lrzip.cli import options
from lrzip.cli.console import (
    goes_to_stdout,
    load_network,
    make_table,
    model_path,
    output_path,
    print_json,
    printable,
    set_threads,
    stderr,
    stdout,
)
from lrzip.errors import UsageError

if TYPE_CHECKING:
    from lrzip.finetuning import FinetuneReport
    from lrzip.training.losses import Teaching
    from lrzip.training.outcomes import Moment, Watch

_SHARES = ("accuracy", "top5")


def finetune(
    model: options.Model = None,
    network: options.Network = None,
    model_arg: options.ModelArg = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="file.npz, .safetensors or .pt with x and y or train_x, train_y; a folder of images, one subfolder a "
            "class; or pkg.mod:callable that returns a Dataset, a DataLoader, or two.",
        ),
    ] = None,
    val: Annotated[str | None, typer.Option(metavar="SPEC", help="Validation set, where it is elsewhere.")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share of the training set to validate on, without --val.")] = 0.1,
    mean: Annotated[str | None, typer.Option(metavar="NUMBERS", help="Subtracted from inputs, one a channel.")] = None,
    std: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="That inputs are divided by, one a channel.")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Random changes of training images: crop,flip.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Side to which images of folders are resized.")] = None,
    loss: Annotated[str, typer.Option(help="auto, cross_entropy, mse, kl or pkg.mod:fn.")] = "auto",
    label_smoothing: Annotated[float, typer.Option(help="Share of each label that goes to all classes.")] = 0.0,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="accuracy, top5, r2, rmse, mae or pkg.mod:fn; the first selects the best state.",
            show_default="accuracy or r2",
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="DENSE", help="Learn from this checkpoint too; without labels, from it alone.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Compare classes with a teacher's as distributions of this temperature.",
            show_default="logits are compared",
        ),
    ] = None,
    teacher_share: Annotated[
        float | None, typer.Option(help="Share of a teacher in the loss beside labels.", show_default="0.5")
    ] = None,
    match_layers: Annotated[
        float | None,
        typer.Option(help="Weight of the outputs of factorized layers against the teacher's.", show_default="0"),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, adam or sgd.")] = "adamw",
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.", show_default="3e-3, sgd 5e-2")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of weights alone.", show_default="adamw 1e-2, sgd 1e-4, adam 0")
    ] = None,
    schedule: Annotated[str, typer.Option(help="cosine, plateau or constant.")] = "cosine",
    warmup: Annotated[float, typer.Option(help="Share of the steps over which the rate rises.")] = 0.05,
    clip: Annotated[float, typer.Option(help="Norm that gradients are clipped to; 0 leaves them.")] = 1.0,
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 10,
    steps: Annotated[int | None, typer.Option(help="Steps in all, in place of epochs.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Examples a step, over all processes.", show_default="128, fewer for few examples"),
    ] = None,
    amp: Annotated[
        str,
        typer.Option(
            help="What to compute in, with weights in float32: bf16, fp16, no (float32), or auto, which is bf16 for "
            "convolutions of images on devices that have it."
        ),
    ] = "auto",
    freeze_batchnorm: Annotated[
        bool, typer.Option("--freeze-batchnorm", help="Keep the running statistics of batch norms.")
    ] = False,
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without a better score.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")] = 0,
    shard: Annotated[
        bool, typer.Option("--shard", help="Share out weights and optimizer among the processes of torchrun (FSDP).")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the state here, and go on from it if it exists.")
    ] = None,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="Append a line of JSON for each epoch.")] = None,
    output: options.Output = None,
    key: options.Key = None,
    trust: options.Trust = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    seed: Annotated[int, typer.Option(help="Of splits, order, augmentation and dropout.")] = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
) -> None:
    """Recover accuracy of a compressed checkpoint by training it."""
    if data is None:
        raise UsageError("finetune needs `--data SPEC`. See `lrzip finetune --help`.")
    from lrzip.data.augmentation import Preparation
    from lrzip.finetuning import finetune
    from lrzip.training.settings import Settings

    set_threads(threads)
    settings = Settings(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        amp=amp,
        freeze_batchnorm=freeze_batchnorm,
        patience=patience,
        seed=seed,
        shard=shard,
    )
    to_stdout = goes_to_stdout(output, model)
    with model_path(model) as source, output_path(output, to_stdout=to_stdout) as destination:
        built = load_network(network, model_arg)
        with redirect_stdout(sys.stderr), _progress(quiet=quiet) as watch:
            report = finetune(
                source,
                destination,
                model=built,
                data=data,
                val=val,
                val_fraction=val_fraction,
                preparation=Preparation.parse(mean, std, augment),
                image_size=image_size,
                loss=loss,
                label_smoothing=label_smoothing,
                metrics=metric or (),
                teacher=teacher,
                teaching=_teaching(temperature, teacher_share, match_layers),
                settings=settings,
                device=device,
                workers=workers,
                resume=resume,
                log=log,
                key=key,
                trust=trust,
                force=force,
                watch=watch,
            )
    if not report.outcome.main:
        return
    report = replace(report, source=Path(model or "-"), output=Path("-") if to_stdout else report.output)
    if json:
        print_json(report.to_dict(), sys.stderr if to_stdout else sys.stdout)
    elif not quiet:
        _print(stderr() if to_stdout else stdout(), report)
    if report.trouble:
        print(f"lrzip: {report.trouble}", file=sys.stderr)
        raise typer.Exit(130 if report.outcome.stopped == "interrupted" else 3)


def _teaching(temperature: float | None, share: float | None, layers: float | None) -> "Teaching | None":
    from lrzip.training.losses import Teaching

    given = {"temperature": temperature, "share": share, "layers": layers}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Teaching(**chosen) if chosen else None


@contextmanager
def _progress(*, quiet: bool) -> "Iterator[Watch | None]":
    """Yield a callback that draws a bar where standard error is a terminal, in the first process; else none."""
    if quiet or not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield None
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f} {task.fields[scores]}", markup=False),
    )
    with bars.Progress(*columns, console=Console(file=sys.stderr, highlight=False), transient=True) as drawn:
        task = drawn.add_task("finetune", total=None, epoch=1, loss=float("nan"), scores="")

        def show(moment: "Moment") -> None:
            scores = _scores_text(moment.last.scores) if moment.last else ""
            drawn.update(
                task, total=moment.steps, completed=moment.step, epoch=moment.epoch, loss=moment.loss, scores=scores
            )

        yield show


def _print(console: Console, report: "FinetuneReport") -> None:
    outcome = report.outcome
    for name, reason in report.dropped:
        console.print(Text(printable(f"Left out: {name}: {reason}.")), soft_wrap=True)
    if report.before:
        rows = [
            [
                str(epoch.number),
                "–" if epoch.loss is None else f"{epoch.loss:.4f}",
                *(_score(name, value) for name, value in epoch.scores.items()),
                f"{epoch.seconds:.1f}",
            ]
            for epoch in outcome.epochs
        ]
        console.print(make_table(["epoch", "loss", *report.before, "seconds"], rows))
        change = ", ".join(
            f"{name} {_score(name, report.before[name])} → {_score(name, value)}"
            for name, value in report.after.items()
        )
        console.print(f"\n{change} on {report.examples[1]} examples for validation, after epoch {outcome.best.number}.")
    else:
        console.print("There is no validation set, so what was written is the last state.")
    text = f"Wrote {report.output} after {outcome.steps} steps in {outcome.seconds:.1f} s"
    console.print(Text(printable(text)), soft_wrap=True)


def _scores_text(scores: Mapping[str, float]) -> str:
    return " ".join(f"{name} {_score(name, value)}" for name, value in scores.items())


def _score(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name in _SHARES else f"{value:.4g}"

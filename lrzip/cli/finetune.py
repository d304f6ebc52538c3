"""`lrzip finetune`."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
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
from lrzip.cli.learning import distillation_of, score_text, training_progress
from lrzip.core.errors import UsageError

if TYPE_CHECKING:
    from lrzip.api.finetune import FinetuneReport


def finetune(
    model: options.Model = None,
    network: options.Network = None,
    model_arg: options.ModelArg = None,
    data: options.Data = None,
    val: options.Val = None,
    val_fraction: options.ValFraction = 0.1,
    mean: options.Mean = None,
    std: options.Std = None,
    augment: options.Augment = None,
    image_size: options.ImageSize = None,
    loss: options.Loss = "auto",
    label_smoothing: options.LabelSmoothing = 0.0,
    metric: options.Metric = None,
    teacher: Annotated[
        str | None,
        options.training(metavar="DENSE", help="Learn from this checkpoint too; without labels, from it alone."),
    ] = None,
    temperature: options.Temperature = None,
    teacher_share: options.TeacherShare = None,
    match_layers: Annotated[
        float | None,
        options.training(help="Weight of the outputs of factorized layers against the teacher's.", show_default="0"),
    ] = None,
    optimizer: options.Optimizer = "adamw",
    lr: options.Lr = None,
    weight_decay: options.WeightDecay = None,
    schedule: Annotated[str, options.training(help="cosine, plateau or constant.")] = "cosine",
    warmup: Annotated[float, options.training(help="Share of the steps over which the rate rises.")] = 0.05,
    clip: Annotated[float, options.training(help="Norm that gradients are clipped to; 0 leaves them.")] = 1.0,
    epochs: Annotated[int, options.training(help="Passes over the training set.")] = 10,
    steps: Annotated[int | None, options.training(help="Steps in all, in place of epochs.")] = None,
    batch_size: options.BatchSize = None,
    amp: options.Amp = "auto",
    freeze_batchnorm: options.FreezeBatchnorm = False,
    patience: Annotated[int | None, options.training(help="Stop after so many epochs without a better score.")] = None,
    workers: options.Workers = 0,
    shard: Annotated[
        bool,
        options.training("--shard", help="Share out weights and optimizer among the processes of torchrun (FSDP)."),
    ] = False,
    resume: Annotated[
        Path | None, options.training(metavar="FILE", help="Keep the state here, and go on from it if it exists.")
    ] = None,
    log: Annotated[Path | None, options.training(metavar="FILE", help="Append a line of JSON for each epoch.")] = None,
    output: options.Output = None,
    key: options.Key = None,
    trust: options.Trust = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    seed: Annotated[int, options.training(help="Of splits, order, augmentation and dropout.")] = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
) -> None:
    """Recover accuracy of a compressed checkpoint by training it."""
    if data is None:
        raise UsageError("finetune needs `--data SPEC`. See `lrzip finetune --help`.")
    from lrzip.api.finetune import finetune
    from lrzip.training.data.augmentation import Preparation
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
        with redirect_stdout(sys.stderr), training_progress(quiet=quiet, label="finetune") as (_, watch):
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
                distillation=distillation_of(temperature, teacher_share, match_layers),
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


def _print(console: Console, report: "FinetuneReport") -> None:
    outcome = report.outcome
    for name, reason in report.dropped:
        console.print(Text(printable(f"Left out: {name}: {reason}.")), soft_wrap=True)
    if report.before:
        rows = [
            [
                str(epoch.number),
                "–" if epoch.loss is None else f"{epoch.loss:.4f}",
                *(score_text(name, value) for name, value in epoch.scores.items()),
                f"{epoch.seconds:.1f}",
            ]
            for epoch in outcome.epochs
        ]
        console.print(make_table(["epoch", "loss", *report.before, "seconds"], rows))
        change = ", ".join(
            f"{name} {score_text(name, report.before[name])} → {score_text(name, value)}"
            for name, value in report.after.items()
        )
        console.print(f"\n{change} on {report.examples[1]} examples for validation, after epoch {outcome.best.number}.")
    else:
        console.print("There is no validation set, so what was written is the last state.")
    text = f"Wrote {report.output} after {outcome.steps} steps in {outcome.seconds:.1f} s"
    console.print(Text(printable(text)), soft_wrap=True)

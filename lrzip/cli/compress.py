"""`lrzip compress`."""

import json as jsonlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrzip.cli import options
from lrzip.cli.bounded import compress_within_bound
from lrzip.cli.calibrating import calibration_of
from lrzip.cli.console import (
    given_options,
    goes_to_stdout,
    layer_progress,
    load_network,
    model_path,
    output_path,
    print_json,
    refuse,
    set_threads,
    stderr,
    stdout,
)
from lrzip.cli.curves import show_curve
from lrzip.cli.gates import check_gates
from lrzip.cli.learning import distillation_of, make_learning
from lrzip.cli.reporting import print_report
from lrzip.core.errors import UsageError
from lrzip.formats.files.atomic import atomic_file, check_output

if TYPE_CHECKING:
    from lrzip.core.report import Report


# Options that decide on ranks, and those of one plan, of a search within a bound, and of measuring on data.
_RANKS = ("--energy", "--ratio", "--rank", "--vbmf", "--rank-rule", "--plan")
_ONE_PLAN = ("--save-plan", "--min-ratio", "--max-error", "--min-speedup", "--latency", "--force-factorize")
_UNBOUNDED = (
    *(*_RANKS, "--budget", "--layer", "--round-to", "--force-factorize", "--dtype", "--dry-run", "--max-error"),
    *("--keep-optimizer", "--input-shape", "--latency", "--min-speedup", "--save-statistics", "--reconstruct"),
    *("--decomposition", "--calibrate", "--calibration-samples", "--calibration-memory", "--correct"),
)
_BOUNDED = (
    *("--test", "--strategy", "--teacher", "--temperature", "--teacher-share", "--optimizer", "--lr", "--epochs"),
    *("--steps", "--freeze-batchnorm", "--log", "--resume"),
)
_MEASURING = ("--val", "--val-fraction", "--metric", "--loss", "--image-size", "--batch-size", "--amp", "--workers")


def compress(
    context: typer.Context,
    model: options.Model = None,
    energy: Annotated[float | None, options.ranks(help="Keep this share of each layer's Σσ².")] = None,
    ratio: Annotated[float | None, options.ranks(help="Divide each layer's parameters by this.")] = None,
    rank: Annotated[int | None, options.ranks(help="Give every layer this rank, where it saves.")] = None,
    vbmf: Annotated[bool, options.ranks("--vbmf", help="Keep what stands out from noise in each layer.")] = False,
    budget: Annotated[
        str | None,
        options.ranks(
            metavar="UNIT=AMOUNT",
            help="Best ranks within params=50% or 1.2M, nbytes=10MB, macs=40%, latency=60% or 5ms; "
            "params=20%,40%,60% with --dry-run.",
        ),
    ] = None,
    rank_rule: Annotated[
        str | None,
        options.ranks(metavar="RULE", help="Any rule by name: energy:0.8, ratio:4, rank:16, vbmf, budget:params=50%."),
    ] = None,
    objective: Annotated[
        str | None,
        options.ranks(
            help="Predicts losses: relative-energy, energy, log-energy, scaled-log-energy, operator-norm, fisher, "
            "sensitivity (measured).",
            show_default="fisher with --calibrate and a network, else scaled-log-energy",
        ),
    ] = None,
    plan: Annotated[Path | None, options.ranks(metavar="FILE", help="Do what a plan file says.")] = None,
    layer: Annotated[
        list[str] | None,
        options.ranks(
            metavar="GLOB=RULE",
            help="Rule of some layers: energy:0.8, ratio:4, rank:16, vbmf or keep; the last match wins.",
        ),
    ] = None,
    only: options.Only = None,
    skip: options.Skip = None,
    output: options.Output = None,
    round_to: Annotated[
        int | None,
        options.ranks(
            help="Round ranks up to a multiple, where that still saves.",
            show_default="8 for convolutions in ONNX, whose runtimes block channels so; else 1",
        ),
    ] = None,
    force_factorize: Annotated[
        bool, options.ranks("--force-factorize", help="Also where it saves nothing, to check a program at full rank.")
    ] = False,
    decomposition: Annotated[
        str,
        options.factors(help="svd, or tucker: k×k convolutions become 1×1, k×k and 1×1, with a rank on both sides."),
    ] = "svd",
    svd: Annotated[
        str,
        options.factors(
            help="auto, exact, gram, or a sketch: randomized, subspace, srft, row-extraction, single-pass."
        ),
    ] = "auto",
    oversample: Annotated[int, options.factors(help="Sketch vectors beyond the rank.")] = 10,
    power_iterations: Annotated[int, options.factors(help="Power iterations of a sketch.")] = 2,
    tolerance: Annotated[
        float,
        options.factors(help="Share by which errors may exceed the best possible; inf leaves sketches unchecked."),
    ] = 1e-3,
    dtype: Annotated[
        str, options.factors(help="Of the factors: keep, float32, float64, float16 or bfloat16.")
    ] = "keep",
    dry_run: Annotated[bool, options.output("--dry-run", help="Show the plan and what it would save.")] = False,
    save_plan: Annotated[
        Path | None, options.output(metavar="FILE", help="Write the plan, to edit and pass to --plan.")
    ] = None,
    plot: Annotated[
        Path | None,
        options.output("--plot", help="Draw size against predicted loss, for several budgets, or against the metric."),
    ] = None,
    min_ratio: Annotated[float | None, options.output(help="Exit with 3 if the result is less times smaller.")] = None,
    max_error: Annotated[
        float | None, options.output(help="Exit with 3 if a layer's relative error is larger.")
    ] = None,
    keep_optimizer: Annotated[
        bool, options.output("--keep-optimizer", help="Keep an optimizer state that no longer fits.")
    ] = False,
    network: options.Network = None,
    model_arg: options.ModelArg = None,
    input_shape: options.InputShape = None,
    latency: Annotated[
        bool, options.network("--latency", help="Time dense against factorized on this machine.")
    ] = False,
    min_speedup: Annotated[
        float | None, options.ranks(help="Leave layers whole whose factors are not so many times faster here.")
    ] = None,
    calibrate: Annotated[
        str | None,
        options.calibration(
            metavar="SPEC",
            help="Choose by what layers make of examples, without labels: file.npz and the like, as --data takes them, "
            "with --model or of a program; or what --save-statistics wrote.",
        ),
    ] = None,
    calibration_samples: Annotated[
        int | None, options.calibration(min=1, help="Examples of --calibrate, picked at random.", show_default="1024")
    ] = None,
    calibration_memory: Annotated[
        str | None,
        options.calibration(metavar="SIZE", help="Of what --calibrate gathers at a time: 500MB.", show_default="2GiB"),
    ] = None,
    reconstruct: Annotated[
        int,
        options.calibration(
            metavar="STEPS",
            min=0,
            help="After --calibrate, train on its examples, without labels, to put out what the dense network does.",
        ),
    ] = 0,
    save_statistics: Annotated[
        Path | None,
        options.calibration(
            metavar="FILE.safetensors", help="Write what --calibrate saw, to give to --calibrate later."
        ),
    ] = None,
    correct: Annotated[
        str | None,
        options.calibration(
            metavar="NAMES",
            help="What --calibrate makes up for: none, or some of bias, sequential, residual, refit, response.",
            show_default="all",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        options.bound(
            metavar="D",
            help="As small as the metric allows on validation data: D points of accuracy, or D of another metric's "
            "units. Needs --model and --data, and tunes on the way.",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        options.bound(
            help="Of --max-drop: global, adaptive, uniform, selective, avoid-critical, ratio or energy.",
            show_default="global",
        ),
    ] = None,
    data: options.Data = None,
    val: options.Val = None,
    val_fraction: options.ValFraction = 0.1,
    test: Annotated[
        str | None, options.bound(metavar="SPEC", help="Test set, looked at once, after everything is decided.")
    ] = None,
    mean: options.Mean = None,
    std: options.Std = None,
    augment: options.Augment = None,
    image_size: options.ImageSize = None,
    loss: options.Loss = "auto",
    metric: options.Metric = None,
    teacher: options.Teacher = None,
    temperature: options.Temperature = None,
    teacher_share: options.TeacherShare = None,
    optimizer: options.Optimizer = "adamw",
    lr: options.Lr = None,
    epochs: Annotated[int, options.bound(help="Passes over the training set in each brief fine-tune.")] = 3,
    steps: Annotated[int | None, options.bound(help="Steps of each brief fine-tune, in place of epochs.")] = None,
    batch_size: options.BatchSize = None,
    amp: options.Amp = "auto",
    freeze_batchnorm: options.FreezeBatchnorm = False,
    workers: options.Workers = 0,
    log: Annotated[
        Path | None, options.bound(metavar="FILE", help="Append a line of JSON for each network that was tried.")
    ] = None,
    resume: Annotated[bool, options.bound("--resume", help="Go on with what --log holds.")] = False,
    key: options.Key = None,
    trust: options.Trust = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    seed: Annotated[int, options.factors(help="Of all sketches: same seed, same bytes.")] = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
) -> None:
    """Write a smaller checkpoint by a layer-wise plan, or as small as a bound on its metric allows."""
    given = given_options(context)
    choosing = {"only": only or (), "skip": skip or (), "key": key, "trust": trust, "force": force}
    solving = {
        "objective": objective,
        "svd": svd,
        "oversample": oversample,
        "power_iterations": power_iterations,
        "tolerance": tolerance,
    }
    computing = {"batch_size": batch_size, "amp": amp, "seed": seed}
    measuring: dict[str, Any] = {
        "val": val,
        "val_fraction": val_fraction,
        "image_size": image_size,
        "loss": loss,
        "metrics": metric,
        "device": device,
        "workers": workers,
    }
    if max_drop is not None:
        refuse(given, _UNBOUNDED, "`--max-drop` decides on all ranks itself, so it goes without `{}`.")
        if network is None or data is None:
            missing = "--model PKG.MOD:NET" if network is None else "--data SPEC"
            raise UsageError(f"`--max-drop` measures networks, and needs `{missing}`.")
        set_threads(threads)
        tuning = {
            "epochs": epochs,
            "steps": steps,
            "optimizer": optimizer,
            "lr": lr,
            "freeze_batchnorm": freeze_batchnorm,
        }
        learning = make_learning(
            data,
            preparation=(mean, std, augment),
            teacher=teacher,
            distillation=distillation_of(temperature, teacher_share),
            settings=computing | tuning,
            **measuring,
        )
        searching = {
            "max_drop": max_drop,
            "strategy": strategy or "global",
            "options": solving,
            "test": test,
            "log": log,
            "resume": resume,
        }
        found = compress_within_bound(
            *(model, output, load_network(network, model_arg), learning, plot, save_plan),
            json=json,
            quiet=quiet,
            options=choosing | searching,
        )
        check_gates(found.report, min_ratio, None)
        if found.interrupted:
            raise typer.Exit(130)
        return
    refuse(given, _BOUNDED, "`{}` goes with `--max-drop D`, which is missing.")
    several = budget is not None and "," in budget and dry_run
    if not several:
        message = "`{}` goes with `--max-drop D`, or with several budgets and `--dry-run`; neither is here."
        refuse(given, ("--data", *_MEASURING), message)
    elif data is None:
        refuse(given, _MEASURING, "`{}` goes with `--data SPEC`, which is missing.")
    calibration = calibration_of(
        calibrate,
        given - {"--mean", "--std"} if data is not None else given,
        samples=calibration_samples,
        memory=calibration_memory,
        correct=correct,
        save=save_statistics,
        reconstruct=reconstruct,
        preparation=(mean, std, augment),
        seed=seed,
    )
    planning = {
        "layers": dict(_rule(text) for text in layer or ()),
        "round_to": round_to,
        "decomposition": decomposition,
        "dtype": dtype,
        "calibrate": calibrate,
        "calibration": calibration,
        "input_shapes": input_shape or (),
        "device": device,
        "seed": seed,
    }
    if several:
        unfit = (*_ONE_PLAN, *_RANKS)
        refuse(given, unfit, "`--budget` with several amounts goes without `{}`. Give one amount, or leave it.")
    elif plot:
        raise UsageError("`--plot` draws a curve of plans. Give `--budget` several amounts, and `--dry-run`.")
    set_threads(threads)
    common = choosing | solving | planning | {"model": load_network(network, model_arg)}
    if budget is not None and several:
        measured = None
        if data is not None:
            measured = make_learning(data, preparation=(mean, std, None), settings=computing, **measuring)
        curve = common | {"learning": measured}
        show_curve(model, budget, plot, json=json, quiet=quiet, force=force, options=curve)
        return
    ruling = {
        "energy": energy,
        "ratio": ratio,
        "rank": rank,
        "vbmf": vbmf,
        "budget": budget,
        "rank_rule": rank_rule,
        "plan": plan,
        "force_factorize": force_factorize,
        "latency": latency,
        "min_speedup": min_speedup,
        "keep_optimizer": keep_optimizer,
        "dry_run": dry_run,
    }
    to_stdout = goes_to_stdout(output, model) and not dry_run
    report = _compressed(model, output, save_plan, to_stdout=to_stdout, quiet=quiet, options=common | ruling)
    if json:
        print_json(report.to_dict(), sys.stderr if to_stdout else sys.stdout)
    elif not quiet:
        print_report(stderr() if to_stdout else stdout(), report)
    check_gates(report, min_ratio, max_error)


def _compressed(
    model: str | None,
    output: Path | None,
    save_plan: Path | None,
    *,
    to_stdout: bool,
    quiet: bool,
    options: Mapping[str, Any],
) -> "Report":
    """Compress by one plan, and return the report, with the names that were given."""
    from lrzip.api.compress import compress

    with model_path(model) as source, output_path(output, to_stdout=to_stdout) as destination:
        if save_plan:
            check_output(save_plan, source, force=options["force"])
        with layer_progress(quiet=quiet) as progress:
            report = compress(source, destination, progress=progress, **options)
    shown = Path("-") if to_stdout else report.output
    report = replace(report, plan=replace(report.plan, source=model or "-"), output=shown)
    if save_plan:
        with atomic_file(save_plan) as temporary:
            temporary.write_text(jsonlib.dumps(report.plan.to_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def _rule(text: str) -> tuple[str, str]:
    pattern, found, rule = text.rpartition("=")
    if not found or not pattern:
        raise UsageError(f"`--layer` takes GLOB=RULE, such as 'fc*=ratio:4', got `{text}`.")
    return pattern, rule

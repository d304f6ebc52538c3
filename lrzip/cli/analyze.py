"""`lrzip analyze`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from lrzip.cli import options
from lrzip.cli.console import (
    costs_text,
    fitting_table,
    given_options,
    layer_progress,
    load_network,
    model_path,
    print_json,
    print_kept,
    printable,
    refuse,
    set_threads,
    shape_text,
    size_text,
    stdout,
)
from lrzip.cli.learning import make_learning
from lrzip.cli.measuring import measure
from lrzip.core.errors import UsageError

if TYPE_CHECKING:
    from lrzip.api.analyze import Analysis, LayerAnalysis


_COLUMNS = {
    "name": "layer",
    "kind": "kind",
    "shape": "shape",
    "parameters": "parameters",
    "rank": "rank",
    "break_even_rank": "break-even",
    "noise_rank": "noise",
    "condition_number": "condition",
    "effective_rank": "effective",
    "stable_rank": "stable",
    "spectral_norm": "‖W‖₂",
    "frobenius_norm": "‖W‖F",
    "decay_rate": "decay",
}
_BLOCKS = "▁▂▃▄▅▆▇█"


def analyze(
    context: typer.Context,
    model: options.Model = None,
    energy: Annotated[
        list[float] | None,
        options.ranks(
            "--energy", help="Say the rank for this share of Σσ²; repeatable.", show_default="0.7 0.8 0.9 0.95 0.99"
        ),
    ] = None,
    spectrum: Annotated[bool, options.ranks("--spectrum", help="Give all singular values.")] = False,
    sort: Annotated[
        str | None, options.ranks("--sort", metavar="COLUMN", help="Sort by a column, named as in --json.")
    ] = None,
    plot: Annotated[
        Path | None, options.output("--plot", help="Draw the spectra, or the sensitivities, to a .png, .svg or .pdf.")
    ] = None,
    report: Annotated[Path | None, options.output("--report", help="Write a page of all this to an .html.")] = None,
    only: options.Only = None,
    skip: options.Skip = None,
    network: options.Network = None,
    model_arg: options.ModelArg = None,
    input_shape: options.InputShape = None,
    latency: Annotated[
        bool, options.network("--latency", help="Time dense against factorized on this machine.")
    ] = False,
    data: options.Data = None,
    val: options.Val = None,
    val_fraction: options.ValFraction = 0.1,
    mean: options.Mean = None,
    std: options.Std = None,
    image_size: options.ImageSize = None,
    metric: options.Metric = None,
    sensitivity: Annotated[
        bool,
        options.sensitivity("--sensitivity", help="Compress each layer alone, and measure what that costs on --data."),
    ] = False,
    finetune_steps: Annotated[
        int, options.sensitivity(help="Steps of a fine-tune after each of these compressions; 0 goes without.")
    ] = 0,
    runs: Annotated[int, options.sensitivity(help="Seeds to repeat these fine-tunes with.")] = 1,
    cache: Annotated[
        Path | None, options.sensitivity(metavar="FILE", help="Keep what was measured here, and measure nothing twice.")
    ] = None,
    augment: options.Augment = None,
    loss: options.Loss = "auto",
    teacher: options.Teacher = None,
    lr: options.Lr = None,
    batch_size: options.BatchSize = None,
    amp: options.Amp = "auto",
    freeze_batchnorm: options.FreezeBatchnorm = False,
    workers: options.Workers = 0,
    seed: Annotated[int, options.training(help="Of splits, order, augmentation and dropout.")] = 0,
    key: options.Key = None,
    trust: options.Trust = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
) -> None:
    """Look at a checkpoint: spectra, energy ranks, condition numbers."""
    if sort and sort not in _COLUMNS:
        raise UsageError(f"`--sort` takes one of {', '.join(_COLUMNS)}, got {sort}.")
    given = given_options(context)
    if data is None:
        refuse(given, ("--val", "--metric"), "`{}` goes with `--data`, which is missing.")
    if not sensitivity:
        refuse(given, ("--cache", "--runs", "--finetune-steps"), "`{}` goes with `--sensitivity`, which is missing.")
    if sensitivity and data is None:
        raise UsageError("`--sensitivity` measures on data: give `--model PKG.MOD:NET` and `--data SPEC`.")
    if data is not None and network is None:
        raise UsageError("`--data` is what a network is measured on: give `--model PKG.MOD:NET`.")
    from lrzip.api.analyze import DEFAULT_ENERGIES, analyze
    from lrzip.cli.drawing import check_picture, draw_sensitivities, draw_spectra
    from lrzip.cli.page import check_page, write_page

    set_threads(threads)
    with model_path(model) as path, layer_progress(quiet=quiet) as progress:
        if plot:
            check_picture(plot, path, force=force)
        if report:
            check_page(report, path, force=force)
        built = load_network(network, model_arg)
        measured = None
        if data is not None and built is not None:
            learning = make_learning(
                data,
                val=val,
                val_fraction=val_fraction,
                preparation=(mean, std, augment),
                image_size=image_size,
                loss=loss,
                metrics=metric,
                teacher=teacher,
                settings={
                    "lr": lr,
                    "batch_size": batch_size,
                    "amp": amp,
                    "freeze_batchnorm": freeze_batchnorm,
                    "seed": seed,
                },
                device=device,
                workers=workers,
            )
            asked = {"energies": energy, "finetune_steps": finetune_steps, "runs": runs} if sensitivity else None
            measured = measure(
                path, built, learning, asked, only=only, skip=skip, cache=cache, key=key, trust=trust, quiet=quiet
            )
        analysis = analyze(
            path,
            energies=energy or DEFAULT_ENERGIES,
            only=only or (),
            skip=skip or (),
            model=built,
            input_shapes=input_shape or (measured.shapes if measured else ()),
            latency=latency,
            key=key,
            trust=trust,
            device=device,
            progress=progress,
        )
    document = analysis.to_dict(spectrum=spectrum)
    document["source"]["path"] = model or "-"
    document |= measured.to_dict() if measured else {}
    rows = list(zip(document["layers"], analysis.layers, strict=True))
    if sort:
        rows = _sorted(rows, sort)
        document["layers"] = [row for row, _ in rows]
    if plot:
        if measured and measured.sensitivities:
            draw_sensitivities(measured.sensitivities, plot)
        else:
            draw_spectra(analysis, plot)
    if report:
        write_page(analysis, document, report)
    if json:
        print_json(document, sys.stdout)
    else:
        _print(stdout(), document, [item for _, item in rows], analysis)
        if measured:
            measured.show(stdout())


def _sorted(
    rows: list[tuple[dict[str, Any], "LayerAnalysis"]], column: str
) -> list[tuple[dict[str, Any], "LayerAnalysis"]]:
    """Return rows in the order of a column: texts ascending, numbers descending, missing ones last."""
    texts = column in ("name", "kind", "shape")
    present = [row for row in rows if row[0][column] is not None]
    missing = [row for row in rows if row[0][column] is None]
    return sorted(present, key=lambda row: row[0][column], reverse=not texts) + missing


def _print(console: Console, document: dict[str, Any], layers: list["LayerAnalysis"], analysis: "Analysis") -> None:
    source, totals = document["source"], document["totals"]
    entry = f" · entry {source['key']}" if source["key"] else ""
    console.print(Text(printable(f"{source['path']} · {source['format']}{entry} · {size_text(source['nbytes'])}")))
    console.print()
    energies = [f"{energy:g}" for energy in analysis.parameters_at]
    columns = [*list(_COLUMNS.values())[:5], *energies, *list(_COLUMNS.values())[5:], "spectrum"]
    rows = [_cells(row, item) for row, item in zip(document["layers"], layers, strict=True)]
    expendable = ["spectrum", "kind", "noise", "condition", "stable", "effective", "rank", "‖W‖₂", "‖W‖F", "decay"]
    table, hidden = fitting_table(console, columns, rows, expendable=expendable)
    if rows:
        console.print(table)
    if "spectrum" in document["layers"][0] if document["layers"] else False:
        for row in document["layers"]:
            values = " ".join(f"{value:.4g}" for value in row["spectrum"])
            console.print(Text(f"\n{printable(row['name'])}: {values}"), soft_wrap=True)
    print_kept(console, analysis.keep)
    console.print(
        f"\n{len(rows)} of {totals['tensors']} tensors can be factorized: {totals['factorizable_parameters']:,} of "
        f"{totals['parameters']:,} parameters.{' Kinds are inferred from the weights.' if analysis.inferred else ''}"
    )
    for energy, count in analysis.parameters_at.items():
        console.print(
            f"  energy {energy:g}: {count:,} parameters, {totals['parameters'] / max(count, 1):.2f} times smaller"
        )
        if energy in analysis.costs_at:
            console.print(f"    {costs_text(analysis.costs_at[energy])}")
    if hidden:
        console.print(f"Hidden for lack of width: {', '.join(hidden)}.")


def _cells(row: dict[str, Any], item: "LayerAnalysis") -> list[str]:
    return [
        row["name"],
        row["kind"],
        shape_text(row["shape"]),
        f"{row['parameters']:,}",
        str(row["rank"]),
        *(str(rank) for rank in row["energy_ranks"].values()),
        str(row["break_even_rank"]),
        str(row["noise_rank"]),
        *(_number(row[column]) for column in list(_COLUMNS)[7:]),
        _sparkline(item),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1e}" if abs(value) >= 1e5 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _sparkline(item: "LayerAnalysis", width: int = 12) -> str:
    """Return the singular values over σ₁ as a row of blocks."""
    values = item.candidate.spectra[0].values
    if not float(values[0]):
        return ""
    count = min(width, len(values))
    picked = [float(values[index * (len(values) - 1) // max(count - 1, 1)] / values[0]) for index in range(count)]
    return "".join(_BLOCKS[round(share * (len(_BLOCKS) - 1))] for share in picked)

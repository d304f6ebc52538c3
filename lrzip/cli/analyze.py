"""The command `lrzip analyze`."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lrzip.cli.checks import check_options
from lrzip.cli.commands import Given, run_as
from lrzip.cli.console import (
    costs_text,
    layer_progress,
    print_entry,
    print_kept,
    print_table,
    printable,
    shape_text,
    show_result,
    size_text,
)
from lrzip.cli.files import checkpoint_path
from lrzip.cli.measuring import Measurement, measure
from lrzip.cli.network import load_network
from lrzip.cli.verbs import ANALYZE
from lrzip.core.errors import UsageError
from lrzip.core.output_options import AnalyzeOutputs, Overwriting, Printing
from lrzip.core.training_options import DataOptions

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


@run_as(ANALYZE)
def analyze(given: Given) -> None:
    """Analyze a checkpoint, and show the result."""
    outputs = given[AnalyzeOutputs]
    if outputs.sort and outputs.sort not in _COLUMNS:
        raise UsageError(f"`sort` takes one of {', '.join(_COLUMNS)}, got {outputs.sort}.")
    check_options(given)
    if given[DataOptions].data is not None and given.values["model"] is None:
        raise UsageError("`data` is what a network is measured on: give `model=PKG.MOD:NET`.")
    analysis, measured = _analyzed(given)
    document = analysis.to_dict(spectrum=outputs.spectrum)
    document["source"]["path"] = given.checkpoint or "-"
    document |= measured.to_dict() if measured else {}
    rows = list(zip(document["layers"], analysis.layers, strict=True))
    if outputs.sort:
        rows = _sorted(rows, outputs.sort)
        document["layers"] = [row for row, _ in rows]
    _draw(outputs, analysis, measured, document)
    layers = [item for _, item in rows]

    def draw(console: Console) -> None:
        _print(console, document, layers, analysis)
        if measured:
            measured.show(console)

    show_result(given[Printing], lambda: document, draw, to_stdout=False)


def _analyzed(given: Given) -> "tuple[Analysis, Measurement | None]":
    """Return the analysis of a checkpoint, and measurements if there is data."""
    from lrzip.api.analyze import analyze
    from lrzip.api.keywords import AnalyzeOptions
    from lrzip.cli.drawing import check_picture
    from lrzip.cli.page import check_page

    outputs, force = given[AnalyzeOutputs], given[Overwriting].force
    with checkpoint_path(given.checkpoint) as path, layer_progress(quiet=given[Printing].quiet) as progress:
        if outputs.plot:
            check_picture(outputs.plot, path, force=force)
        if outputs.report:
            check_page(outputs.report, path, force=force)
        network = load_network(given)
        measured = measure(given, path, network) if given[DataOptions].data is not None and network else None
        keywords = given.keywords(AnalyzeOptions.__annotations__) | {"model": network, "progress": progress}
        if measured and "input_shapes" not in keywords:
            keywords["input_shapes"] = measured.shapes
        return analyze(path, **keywords), measured


def _draw(
    outputs: AnalyzeOutputs, analysis: "Analysis", measured: "Measurement | None", document: dict[str, Any]
) -> None:
    """Write the picture and the page, if they are requested."""
    from lrzip.cli.drawing import draw_sensitivities, draw_spectra, save_picture
    from lrzip.cli.page import write_page

    if outputs.plot and measured and measured.sensitivities:
        save_picture(draw_sensitivities(measured.sensitivities), outputs.plot)
    elif outputs.plot:
        save_picture(draw_spectra(analysis), outputs.plot)
    if outputs.report:
        write_page(analysis, document, outputs.report)


def _sorted(
    rows: list[tuple[dict[str, Any], "LayerAnalysis"]], column: str
) -> list[tuple[dict[str, Any], "LayerAnalysis"]]:
    """Return rows sorted by a column: texts ascending, numbers descending, missing values last."""
    texts = column in ("name", "kind", "shape")
    present = [row for row in rows if row[0][column] is not None]
    missing = [row for row in rows if row[0][column] is None]
    return sorted(present, key=lambda row: row[0][column], reverse=not texts) + missing


def _print(console: Console, document: dict[str, Any], layers: list["LayerAnalysis"], analysis: "Analysis") -> None:
    from lrzip.pipeline.subnormal_weights import subnormal_note

    source, totals = document["source"], document["totals"]
    console.print(Text(printable(f"{source['path']} · {source['format']} · {size_text(source['nbytes'])}")))
    print_entry(console, analysis.entry)
    console.print()
    energies = [f"{energy:g}" for energy in analysis.parameters_at]
    columns = [*list(_COLUMNS.values())[:5], *energies, *list(_COLUMNS.values())[5:], "spectrum"]
    rows = [_cells(row, item) for row, item in zip(document["layers"], layers, strict=True)]
    expendable = [
        "decay",
        "‖W‖F",
        "‖W‖₂",
        "rank",
        "effective",
        "stable",
        "condition",
        "noise",
        "kind",
        "spectrum",
        *energies,
    ]
    if rows:
        print_table(console, columns, rows, expendable=expendable)
    if "spectrum" in document["layers"][0] if document["layers"] else False:
        for row in document["layers"]:
            values = " ".join(f"{value:.4g}" for value in row["spectrum"])
            console.print(Text(f"\n{printable(row['name'])}: {values}"), soft_wrap=True)
    print_kept(console, analysis.keep)
    console.print(
        f"\n{len(rows)} of {totals['tensors']} tensors can be factorized: {totals['factorizable_parameters']:,} of "
        f"{totals['parameters']:,} parameters.{' Kinds are inferred from the weights.' if analysis.inferred else ''}"
    )
    if note := subnormal_note(analysis.subnormal):
        console.print(Text(printable(note)), soft_wrap=True)
    for energy, count in analysis.parameters_at.items():
        console.print(
            f"  energy {energy:g}: {count:,} parameters, {totals['parameters'] / max(count, 1):.2f} times smaller"
        )
        if energy in analysis.costs_at:
            console.print(f"    {costs_text(analysis.costs_at[energy])}")


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
    """Return the singular values, relative to the largest one, as a row of blocks."""
    values = item.candidate.spectra[0].values
    if not float(values[0]):
        return ""
    count = min(width, len(values))
    picked = [float(values[index * (len(values) - 1) // max(count - 1, 1)] / values[0]) for index in range(count)]
    return "".join(_BLOCKS[round(share * (len(_BLOCKS) - 1))] for share in picked)

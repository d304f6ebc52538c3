"""Measurements of `lrzip analyze --data`."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lrzip.cli.commands import Given
from lrzip.cli.console import print_table, printable
from lrzip.cli.learning import Announce, learning_of, scores_text, training_progress
from lrzip.core.options import Factoring, Opening, Selection
from lrzip.core.output_options import Printing
from lrzip.core.training_options import SensitivityOptions

if TYPE_CHECKING:
    from torch import nn

    from lrzip.search.sensitivities import LayerSensitivity, Sensitivities
    from lrzip.training.bench import Bench
    from lrzip.training.evaluation import Evaluation
    from lrzip.training.outcomes import StepCallback


_EXPENDABLE = ("/ ‖W−Wr‖F", "/ ‖W‖F", "std")


@dataclass(frozen=True)
class Measurement:
    """Measurements of a checkpoint on data.

    Attributes:
        evaluation: Metrics of the checkpoint.
        sensitivities: Drops of the metric for each layer, if requested.
        shapes: Shapes of the inputs, in the form of `--input-shape`.
    """

    evaluation: "Evaluation"
    sensitivities: "Sensitivities | None"
    shapes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the entries that are added to the JSON document of the analysis."""
        found = {"sensitivity": self.sensitivities.to_dict()} if self.sensitivities else {}
        return {"evaluation": self.evaluation.to_dict()} | found

    def show(self, console: Console) -> None:
        """Print metrics and sensitivities."""
        scores = scores_text(self.evaluation.scores)
        console.print(Text(printable(f"{scores} on {self.evaluation.examples} validation samples")))
        if self.sensitivities is None:
            return
        rows = [_cells(item, self.sensitivities) for item in self.sensitivities.layers]
        console.print(Text("\nEach layer alone", style="bold"))
        print_table(console, list(rows[0]), [list(row.values()) for row in rows], expendable=_EXPENDABLE)
        console.print(_legend(self.sensitivities), soft_wrap=True)


def measure(given: Given, path: Path, model: "nn.Module") -> Measurement:
    """Return metrics of a checkpoint, and of each of its layers alone if requested; the network is unchanged.

    Args:
        given: The command line.
        path: The checkpoint.
        model: Its architecture.
    """
    from lrzip.networks.state import copy_of
    from lrzip.training.bench import make_bench
    from lrzip.training.evaluation import Evaluation, evaluation_of

    alone, opening = given[SensitivityOptions].sensitivity, given[Opening]
    with redirect_stdout(sys.stderr), training_progress(quiet=given[Printing].quiet, label="measure") as progress:
        bench = make_bench(path, copy_of(model), learning_of(given), distil=alone, **vars(opening))
        if not alone:
            return Measurement(evaluation_of(bench), None, bench.input_shapes())
        found = _sensitivities(given, bench, *progress)
    evaluation = Evaluation(found.baseline, len(bench.val), bench.task.kind)
    return Measurement(evaluation, found, bench.input_shapes())


def _sensitivities(given: Given, bench: "Bench", announce: Announce, watch: "StepCallback | None") -> "Sensitivities":
    from lrzip.search.sensitivity import ENERGIES, sensitivities_of
    from lrzip.search.variants import Variants
    from lrzip.training.cache import Cache

    options = given[SensitivityOptions]
    return sensitivities_of(
        bench,
        Variants(bench.model, given[Selection], Factoring(decomposition=options.decomposition)),
        Cache(options.cache),
        energies=given.values["energies"] or ENERGIES,
        finetune_steps=options.finetune_steps,
        runs=options.runs,
        announce=announce,
        watch=watch,
    )


def _cells(item: "LayerSensitivity", found: "Sensitivities") -> dict[str, str]:
    row = {
        "layer": item.layer.name,
        "energy": f"{item.energy:g}",
        "rank": ", ".join(map(str, item.ranks)),
        "smaller": f"{item.layer.weight.numel / item.parameters:.2f}×",
        "drop": _number(item.before / found.unit),
    }
    if item.after:
        row["tuned"] = _number(item.after.mean / found.unit)
        row["± 95 %"] = "–" if item.after.half_width is None else f"{item.after.half_width / found.unit:.3f}"
        row["std"] = "–" if item.after.std is None else f"{item.after.std / found.unit:.3f}"
    for name, norm in (("/ ‖W‖F", item.norm), ("/ ‖W−Wr‖F", item.removed)):
        row[name] = _number(item.drop / found.unit / norm) if norm else "–"
    return row


def _number(value: float) -> str:
    return f"{value:+.3f}"


def _legend(found: "Sensitivities") -> str:
    unit = "percentage points" if found.unit != 1 else "its own unit"
    tuned = f"; tuned: after {found.finetune_steps} steps, over {found.runs} seeds" if found.finetune_steps else ""
    return f"Drops of {found.metric} in {unit}, positive where it gets worse{tuned}."

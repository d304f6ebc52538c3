"""What `lrzip analyze --data` measures, and how it is shown."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lrzip.cli.console import make_table, printable
from lrzip.cli.learning import scores_text, training_progress

if TYPE_CHECKING:
    from torch import nn

    from lrzip.search.sensitivities import LayerSensitivity, Sensitivities
    from lrzip.training.evaluation import Evaluation
    from lrzip.training.learning import Learning


@dataclass(frozen=True)
class Measurement:
    """What data say of a checkpoint.

    Attributes:
        evaluation: Its metrics.
        sensitivities: Of its layers, if they were asked for.
        shapes: Of the inputs, as `--input-shape` takes them.
    """

    evaluation: "Evaluation"
    sensitivities: "Sensitivities | None"
    shapes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints beside the analysis."""
        found = {"sensitivity": self.sensitivities.to_dict()} if self.sensitivities else {}
        return {"evaluation": self.evaluation.to_dict()} | found

    def show(self, console: Console) -> None:
        """Print it for people."""
        scores = scores_text(self.evaluation.scores)
        console.print(Text(printable(f"{scores} on {self.evaluation.examples} examples for validation")))
        if self.sensitivities is None:
            return
        rows = [_cells(item, self.sensitivities) for item in self.sensitivities.layers]
        console.print(Text("\nEach layer alone", style="bold"))
        console.print(make_table(list(rows[0]), [list(row.values()) for row in rows]))
        console.print(_legend(self.sensitivities), soft_wrap=True)


def measure(
    path: Path,
    model: "nn.Module",
    learning: "Learning",
    asked: Mapping[str, Any] | None,
    *,
    only: Sequence[str] | None,
    skip: Sequence[str] | None,
    cache: Path | None,
    key: str | None,
    trust: bool,
    quiet: bool,
) -> Measurement:
    """Measure a checkpoint on data, and each of its layers if that is asked for; the network is left as it was."""
    import copy

    from lrzip.core.options import Selection
    from lrzip.search.sensitivity import ENERGIES, sensitivities_of
    from lrzip.search.variants import Variants
    from lrzip.training.bench import make_bench
    from lrzip.training.cache import Cache
    from lrzip.training.evaluation import Evaluation, evaluation_of

    with redirect_stdout(sys.stderr), training_progress(quiet=quiet, label="measure") as (announce, watch):
        bench = make_bench(path, copy.deepcopy(model), learning, distil=asked is not None, key=key, trust=trust)
        if asked is None:
            return Measurement(evaluation_of(bench), None, bench.input_shapes())
        found = sensitivities_of(
            bench,
            Variants(bench.model, Selection(only=only or (), skip=skip or ())),
            Cache(cache),
            energies=asked["energies"] or ENERGIES,
            finetune_steps=asked["finetune_steps"],
            runs=asked["runs"],
            announce=announce,
            watch=watch,
        )
    evaluation = Evaluation(found.baseline, len(bench.val), bench.task.kind)
    return Measurement(evaluation, found, bench.input_shapes())


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
    unit = "points" if found.unit != 1 else "its own unit"
    tuned = f"; tuned: after {found.finetune_steps} steps, over {found.runs} seeds" if found.finetune_steps else ""
    return f"Drops of {found.metric} in {unit}, positive where it gets worse{tuned}."

"""Data and training on the command line: what options say, and how progress is drawn."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from lrzip.cli.console import printable

if TYPE_CHECKING:
    from lrzip.training.learning import Learning
    from lrzip.training.losses import Distillation
    from lrzip.training.outcomes import StepCallback, StepState


Announce = Callable[[str], None]
_SHARES = ("accuracy", "top5")


def distillation_of(
    temperature: float | None, share: float | None, layers: float | None = None
) -> "Distillation | None":
    """Return how a teacher counts, or None where no option says."""
    from lrzip.training.losses import Distillation

    given = {"temperature": temperature, "share": share, "layers": layers}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Distillation(**chosen) if chosen else None


def make_learning(
    data: str,
    *,
    preparation: tuple[str | None, str | None, str | None],
    metrics: Sequence[str] | None,
    distillation: "Distillation | None" = None,
    settings: Mapping[str, Any],
    **others: Any,
) -> "Learning":
    """Return what options say of data and training.

    Args:
        data: Of `--data`.
        preparation: Of `--mean`, `--std` and `--augment`.
        metrics: Of `--metric`.
        distillation: How a teacher counts.
        settings: Of `lrzip.training.settings.Settings`.
        others: Of `Learning`, by its names.
    """
    from lrzip.training.data.augmentation import Preparation
    from lrzip.training.learning import Learning
    from lrzip.training.losses import Distillation
    from lrzip.training.settings import Settings

    return Learning(
        data,
        preparation=Preparation.parse(*preparation),
        metrics=metrics or (),
        distillation=distillation or Distillation(),
        settings=Settings(**settings),
        **others,
    )


@contextmanager
def training_progress(*, quiet: bool, label: str) -> "Iterator[tuple[Announce, StepCallback | None]]":
    """Yield what names the work at hand and what draws its steps, where standard error is a terminal.

    Nothing is drawn elsewhere, nor by any but the first of several processes.
    """
    if quiet or not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield (lambda _: None), None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f} {task.fields[scores]}", markup=False),
    )
    with bars.Progress(*columns, console=Console(file=sys.stderr, highlight=False), transient=True) as drawn:
        task = drawn.add_task(label, total=None, epoch=1, loss=float("nan"), scores="")

        def announce(text: str) -> None:
            drawn.reset(task, description=printable(text), total=None, epoch=1, loss=float("nan"), scores="")

        def show(moment: "StepState") -> None:
            scores = scores_text(moment.last.scores) if moment.last else ""
            drawn.update(
                task, total=moment.steps, completed=moment.step, epoch=moment.epoch, loss=moment.loss, scores=scores
            )

        yield announce, show


def scores_text(scores: Mapping[str, float]) -> str:
    """Return metrics in one line."""
    return " ".join(f"{name} {score_text(name, value)}" for name, value in scores.items())


def score_text(name: str, value: float) -> str:
    """Return the value of a metric: a share as percentage."""
    return f"{100 * value:.2f} %" if name in _SHARES else f"{value:.4g}"

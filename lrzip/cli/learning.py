"""Data and training on the command line: their options, progress bars and metrics."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from rich import progress as bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from lrzip.cli.commands import Given
from lrzip.cli.console import printable
from lrzip.core.training_options import PreparationOptions

if TYPE_CHECKING:
    from lrzip.training.data.augmentation import Preparation
    from lrzip.training.learning import Learning
    from lrzip.training.losses import Distillation
    from lrzip.training.outcomes import StepCallback, StepState
    from lrzip.training.settings import Settings


Announce = Callable[[str], None]
_SHARES = ("accuracy", "top5")


def distillation_of(given: Given) -> "Distillation | None":
    """Return the weights of the teacher's outputs, or None if no option sets them."""
    from lrzip.training.losses import Distillation

    names = {"temperature": "temperature", "share": "teacher_share", "layers": "match_layers"}
    values = {name: given.values.get(option) for name, option in names.items()}
    chosen = {name: value for name, value in values.items() if value is not None}
    return Distillation(**chosen) if chosen else None


def preparation_of(given: Given, *, augment: bool = True) -> "Preparation":
    """Return the changes to inputs that options specify."""
    from lrzip.training.data.augmentation import Preparation

    options = given[PreparationOptions]
    return Preparation.parse(options.mean, options.std, options.augment if augment else None)


def settings_of(given: Given) -> "Settings":
    """Return the settings of a training."""
    from lrzip.training.settings import Settings

    return Settings(**given.keywords(item.name for item in fields(Settings)))


def learning_of(given: Given, *, augment: bool = True) -> "Learning":
    """Return the data, the metrics and the training that options specify.

    Args:
        given: The command line.
        augment: Whether training images are augmented.
    """
    from lrzip.training.learning import Learning
    from lrzip.training.losses import Distillation

    return Learning(
        **given.keywords(item.name for item in fields(Learning)),
        preparation=preparation_of(given, augment=augment),
        distillation=distillation_of(given) or Distillation(),
        settings=settings_of(given),
    )


@contextmanager
def training_progress(*, quiet: bool, label: str) -> "Iterator[tuple[Announce, StepCallback | None]]":
    """Yield two callbacks that draw a progress bar: for the start of each training, and for its steps.

    Nothing is drawn unless standard error is a terminal, and only by the first of several processes.
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
    """Return the value of a metric as text; shares as percentages."""
    return f"{100 * value:.2f} %" if name in _SHARES else f"{value:.4g}"

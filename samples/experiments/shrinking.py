"""Compress a trained network in stages: factorize it for a budget, then fine-tune with labels or the dense teacher.

Each stage starts from the network of an earlier one, with its factors merged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import torch
from experiment import Measurements, accuracy, first, parameters, say, table
from matplotlib.figure import Figure
from torch import nn

import lrzip
from lrzip.calibration.settings import CalibrationSettings
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Samples
from lrzip.training.losses import Distillation
from lrzip.training.outcomes import StepState
from lrzip.training.settings import Settings

VALIDATION = 5000
_TOLD = 50


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        budget: Budget of the network, as for `lrzip compress --budget`.
        steps: Steps of fine-tuning.
        after: Number of the stage whose network it starts from, counted from 1, or 0 for the dense network; by default
            the previous stage.
        decomposition: Decomposition, as for `lrzip compress`; the calibration of the recipe is used for `svd` only.
        skip: Layers that are left dense.
        lr: Learning rate, if it differs from that of the recipe.
    """

    budget: str
    steps: int
    after: int | None = None
    decomposition: str = "svd"
    skip: tuple[str, ...] = ()
    lr: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Settings of all stages.

    Attributes:
        stages: Stages in the order in which they run.
        settings: Training settings; the number of steps is that of the stage.
        distillation: Distillation from the dense network; None trains with labels only.
        calibration: Calibration settings; None factorizes the weights alone.
    """

    stages: tuple[Stage, ...]
    settings: Settings
    distillation: Distillation | None
    calibration: CalibrationSettings | None


@dataclass(frozen=True)
class Published:
    """A result to compare with.

    Attributes:
        name: Name of the method.
        smaller: Parameters of the dense network divided by those of the compressed one.
        test: Test accuracy in percent.
        dense: Test accuracy of the dense network in percent.
    """

    name: str
    smaller: float
    test: float
    dense: float


def load(build: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Return a network with the weights of a checkpoint, in evaluation mode."""
    return lrzip.load_into(build(), path).eval()


def prepared(train: Samples, test: Samples, recipe: Recipe, *, quick: bool) -> tuple[Data, Samples, Recipe]:
    """Hold out some training images, without augmentation, for validation.

    Args:
        train: Training images.
        test: Test images.
        recipe: Settings of all stages.
        quick: Whether to use few images, one step per stage, and no calibration.
    """
    held_back = VALIDATION
    if quick:
        train, test, held_back = first(train, 80), first(test, 80), 16
        stages = tuple(replace(stage, steps=1) for stage in recipe.stages)
        recipe = replace(recipe, stages=stages, calibration=None)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(recipe.settings.seed))
    data = Data(train.subset(order[held_back:]), train.subset(order[:held_back]).unaugmented())
    return data, test, recipe


def shrink(build: Callable[[], nn.Module], dense: nn.Module, recipe: Recipe, data: Data, test: Samples) -> Measurements:
    """Run all stages and return the sizes and accuracies of their networks.

    The state of each stage with the best validation accuracy is kept; test images are used once per stage, at its end.

    Args:
        build: Function that returns a network of the architecture.
        dense: Network to compress, and the teacher if there is one.
        recipe: Settings of all stages.
        data: Training and validation images.
        test: Test images.
    """
    assert data.val is not None
    rows = []
    original = {"parameters": parameters(dense), "test": accuracy(dense, test)}
    say(original)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for path in (folder / "teacher.pt", folder / "0.pt"):
            torch.save(dense.state_dict(), path)
        for number, stage in enumerate(recipe.stages, 1):
            start = process_time()
            after = number - 1 if stage.after is None else stage.after
            small, tuned, steps = _stage(build, folder, (after, number), stage, recipe, data)
            row = {
                "after": after,
                "budget": stage.budget,
                "decomposition": stage.decomposition,
                "steps": steps,
                "parameters": parameters(tuned),
                "validation before": accuracy(small, data.val),
                "validation": accuracy(tuned, data.val),
                "cpu seconds": round(process_time() - start),
            }
            rows.append({**row, "test": accuracy(tuned, test)})
            say(rows[-1])
    return {"dense": original, "rows": rows}


def _stage(
    build: Callable[[], nn.Module], folder: Path, numbers: tuple[int, int], stage: Stage, recipe: Recipe, data: Data
) -> tuple[nn.Module, nn.Module, int]:
    """Return the network of a stage before and after fine-tuning, and the number of steps.

    The stage with the second number starts from the network of the stage with the first.
    """
    after, number = numbers
    source = folder / f"{after}.pt"
    calibration = recipe.calibration if stage.decomposition == "svd" else None
    small = lrzip.factorize(
        load(build, source),
        budget=stage.budget,
        decomposition=stage.decomposition,
        skip=stage.skip,
        calibrate=data.train.unaugmented() if calibration else None,
        calibration=calibration,
    ).eval()
    factorized, tuned, dense = (folder / f"{number}{suffix}.pt" for suffix in ("-factorized", "-tuned", ""))
    torch.save(small.state_dict(), factorized)

    def watch(moment: StepState) -> None:
        if moment.step % _TOLD == 0:
            say(stage.budget, moment.step, f"{moment.loss:.4f}", f"{process_time():.0f} s")

    report = lrzip.finetune(
        factorized,
        tuned,
        model=build(),
        data=data,
        teacher=folder / "teacher.pt" if recipe.distillation else None,
        distillation=recipe.distillation,
        settings=replace(recipe.settings, steps=stage.steps, lr=stage.lr or recipe.settings.lr),
        watch=watch,
    )
    lrzip.export(tuned, "dense", dense, model=build())
    return small, load(build, tuned).eval(), report.outcome.steps


def recipe_summary(recipe: Recipe, results: Measurements) -> str:
    """Return a paragraph that describes how the networks in the table were obtained."""
    cut = [
        f"Stage {number} was interrupted after {row['steps']:,} of {stage.steps:,} steps. "
        for number, (stage, row) in enumerate(zip(recipe.stages, results["rows"], strict=True), 1)
        if row["steps"] < stage.steps
    ]
    settings, samples = recipe.settings, recipe.calibration.samples if recipe.calibration else 0
    epoch = (50_000 - VALIDATION) // (settings.batch_size or 1)
    return f"""
Each stage merges the factors of the network of an earlier one and factorizes it for the budget, with {samples:,}
training images as unlabeled calibration data. It is then fine-tuned by AdamW at {settings.lr} with a cosine schedule,
in bfloat16, on batches of {settings.batch_size} cropped and flipped images, {_goal(recipe.distillation)}.
{VALIDATION:,} of the training images are held out, and the state after the epoch (of {epoch} steps) that is best on
them is kept; the validation columns are accuracy on them before and after fine-tuning. Test images were used once for
each network in the table, at its end. {"".join(cut)}The times are CPU time of one thread, including calibration and
validation.
""".strip()


def _goal(distillation: Distillation | None) -> str:
    if distillation is None:
        return "with their labels and without a teacher"
    rest = f" ({distillation.share:.0%}) and with labels" if distillation.share < 1 else ", without labels"
    return f"with the logits of the dense network as targets{rest}"


def stages_table(results: Measurements) -> str:
    """Return a table with one row per stage."""
    original, rows = results["dense"], results["rows"]
    minutes = accumulate(row["cpu seconds"] / 60 for row in rows)
    columns = ("after", "budget", "factors", "parameters", "smaller", "steps", "val. before", "val. after", "test")
    header = ("stage", *columns, "CPU minutes so far")
    cells = [["0", "", "dense", "", f"{original['parameters']:,}", "", "", "", "", f"{original['test']:.2f}", ""]]
    for number, (row, so_far) in enumerate(zip(rows, minutes, strict=True), 1):
        scores = (f"{row[name]:.2f}" for name in ("validation before", "validation", "test"))
        smaller = f"{original['parameters'] / row['parameters']:.2f}×"
        sizes = (row["budget"], row["decomposition"], f"{row['parameters']:,}", smaller, f"{row['steps']:,}")
        cells.append([str(number), str(row["after"]), *sizes, *scores, f"{so_far:.1f}"])
    return table(header, cells)


def published_table(results: Measurements, published: Sequence[Published]) -> str:
    """Return a table of the published results and those measured here, from large to small networks."""
    original = results["dense"]
    ours = [
        Published("lrzip", original["parameters"] / row["parameters"], row["test"], original["test"])
        for row in results["rows"]
    ]
    found = sorted([*published, *ours], key=lambda one: one.smaller)
    cells = [
        [
            *(one.name, f"{one.smaller:.2f}×", f"{100 - 100 / one.smaller:.1f} %"),
            *(f"{one.dense:.2f}", f"{one.test:.2f}", f"{one.test - one.dense:+.2f}"),
        ]
        for one in found
    ]
    return table(["", "smaller", "fewer parameters", "dense network", "test", "change"], cells)


def draw_beside(results: Measurements, published: Sequence[Published], figure: Figure) -> None:
    """Plot test accuracy and its change against the compression ratio, beside the published results."""
    original = results["dense"]
    smaller = [1, *(original["parameters"] / row["parameters"] for row in results["rows"])]
    tests = [original["test"], *(row["test"] for row in results["rows"])]
    left, right = figure.subplots(1, 2)
    changes = [test - original["test"] for test in tests]
    for number, row in enumerate(results["rows"], 1):
        ends = row["after"], number  # a line from the network that a stage began with
        for axes, heights in ((left, tests), (right, changes)):
            x, y = ([values[end] for end in ends] for values in (smaller, heights))
            axes.plot(x, y, marker="o", markersize=4, color="C0", label="lrzip" if number == 1 else None)
    for number, one in enumerate(published):
        for axes, height in ((left, one.test), (right, one.test - one.dense)):
            axes.plot(one.smaller, height, "x", color="C1", label=None if number else "published")
            offset = (5, -9 if number % 2 else 3)
            axes.annotate(one.name, (one.smaller, height), offset, textcoords="offset points", fontsize="small")
    for axes, title in ((left, "test accuracy, %"), (right, "change of test accuracy, percentage points")):
        axes.set(xlabel="times fewer parameters", ylabel=title)
        axes.margins(x=0.2)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left")

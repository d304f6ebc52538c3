"""What the experiments share: their command line, data, training, scoring, and how results are written.

A run keeps all that it measured as `results/NAME.json`; the table `NAME.md` and the picture `NAME.png` are made of that
alone, and `--redraw` makes them anew without measuring.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from time import perf_counter
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

import lrzip
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Arrays, Samples
from lrzip.training.forward import probe
from lrzip.training.loop import Execution, train
from lrzip.training.losses import TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.outcomes import Epoch, Log
from lrzip.training.settings import Settings
from lrzip.training.tasks import find_task

Measurements = dict[str, Any]
"""What was measured, as JSON: objects have names, also where they are numbers."""

CIFAR10 = Preparation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), ("crop", "flip"))
_BATCH = 500


@dataclass(frozen=True)
class Experiment:
    """An experiment, for the command line.

    Attributes:
        name: Of its files in `results`.
        measure: Takes the data's path and whether to hurry, and returns what it measured. Where there is a checkpoint,
            its path comes third.
        document: Returns the Markdown for that, without its heading.
        draw: Draws it.
        checkpoint: What to begin with, if it is a trained network.
    """

    name: str
    measure: Callable[..., Measurements]
    document: Callable[[Measurements], str]
    draw: Callable[[Measurements, Figure], None]
    checkpoint: str | None = None

    def run(self, description: str) -> None:
        """Measure, and write the results, as the command line says."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--data", type=Path, help="where the data is")
        if self.checkpoint:
            parser.add_argument("--checkpoint", type=Path, help=self.checkpoint)
        parser.add_argument("--output", type=Path, help="folder to write to, by default `results` beside this file")
        parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
        parser.add_argument("--redraw", action="store_true", help="only write table and picture of what was measured")
        options = parser.parse_args()
        if options.redraw == bool(options.data):
            parser.error("give either --data or --redraw")
        inputs = [options.data, *([options.checkpoint] if self.checkpoint else [])]
        if options.data and None in inputs:
            parser.error("--data needs --checkpoint here")
        for path in inputs:
            if path and not path.exists():
                parser.error(f"there is no {path}")
        if options.quick and not options.output:
            parser.error("--quick needs another --output: the results are of whole runs")
        folder: Path = options.output or Path(__file__).with_name("results")
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / f"{self.name}.json"
        if options.data:
            start = perf_counter()
            results = {**self.measure(inputs[0], options.quick, *inputs[1:]), "machine": machine()}
            results["seconds"] = round(perf_counter() - start)
            kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        results = json.loads(kept.read_text(encoding="utf-8"))
        self._write(results, folder, description)

    def _write(self, results: Measurements, folder: Path, description: str) -> None:
        title = description.partition("\n")[0].rstrip(".")
        took = timedelta(seconds=results["seconds"])
        parts = [f"# {title}", f"{results['machine']}. {took} in all.", f"![{title}]({self.name}.png)"]
        text = "\n\n".join([*parts, filled(self.document(results))]) + "\n"
        (folder / f"{self.name}.md").write_text(text, encoding="utf-8")
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        self.draw(results, figure)
        figure.savefig(folder / f"{self.name}.png", dpi=110)
        print(text)


def machine() -> str:
    """Return what computed: processor, threads and versions."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return (
        f"{processor}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)}; "
        f"Python {platform.python_version()}, torch {version('torch')}, lrzip {lrzip.__version__}"
    )


def cifar10(folder: Path, preparation: Preparation = CIFAR10) -> tuple[Samples, Samples]:
    """Return the training and the test images in a folder with `train_1.npz`, … and `test.npz`, each with x and y.

    Args:
        folder: Where the files are.
        preparation: What becomes of images; by default the training images are shifted and mirrored at random.
    """
    parts = []
    for pattern in ("train_*.npz", "test.npz"):
        files = [np.load(path, allow_pickle=False) for path in sorted(folder.glob(pattern))]
        x, y = (torch.from_numpy(np.concatenate([file[name] for file in files])) for name in "xy")
        parts.append(Samples(f"{folder}/{pattern}", Arrays(x, y.long(), preparation)))
    return parts[0], parts[1].unaugmented()


def first(samples: Samples, count: int) -> Samples:
    """Return the first so many examples."""
    return samples.subset(torch.arange(min(count, len(samples))))


def fit(
    model: nn.Module, examples: Samples, settings: Settings, *, val: Samples | None = None, log: Log | None = None
) -> None:
    """Train a network in place, to its best state by a validation set, or without one to the last.

    Args:
        model: What to train.
        examples: What to train on.
        settings: How.
        val: The validation set.
        log: Called before training and after each epoch.
    """
    task = find_task(examples, probe(model, examples))
    objective = TrainingLoss(task, make_loss("auto", task))
    outcome = train(model, Data(examples, val), objective, Scorer([], task), settings, Execution(log=log))
    model.load_state_dict(outcome.state)


def score(model: nn.Module, examples: Samples, *metrics: str, amp: str = "no") -> dict[str, float]:
    """Return metrics of a network, by default its accuracy or R², computed in the precision of `Settings.amp`."""
    task = find_task(examples, probe(model, examples))
    with torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
        return Scorer(metrics, task)(model, examples, batch_size=_BATCH)


def accuracy(model: nn.Module, examples: Samples, *, amp: str = "no") -> float:
    """Return the percentage of examples that a network labels right."""
    return round(100 * score(model, examples, "accuracy", amp=amp)["accuracy"], 2)


def retrained(
    model: nn.Module, examples: Samples, settings: Settings, test: Samples, epochs: Sequence[int]
) -> dict[str, float]:
    """Train a network further, in place, and return its test accuracy after some numbers of epochs.

    With a constant learning rate, this is what trainings of so many epochs each would come to. Nothing is chosen by it.

    Args:
        model: What to train.
        examples: What to train on.
        settings: How; the number of epochs is the largest of `epochs`.
        test: What to measure on.
        epochs: After which to measure; 0 is before training.
    """
    found: dict[str, float] = {}

    def log(epoch: Epoch) -> None:
        if epoch.number in epochs:
            found[str(epoch.number)] = accuracy(model, test, amp=settings.amp)

    fit(model, examples, settings, log=log)
    return found


def parameters(model: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def filled(text: str) -> str:
    """Return Markdown with the lines of its paragraphs filled."""
    blocks = text.strip().split("\n\n")
    return "\n\n".join(block if block[0] in "|#" else fill(block, 120, break_on_hyphens=False) for block in blocks)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return mean ± standard deviation, or the only value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def curve(axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], label: str) -> None:
    """Draw a line through the means of some values at each x, with their standard deviations."""
    middles = [mean(group) for group in values]
    widths = [stdev(group) if len(group) > 1 else 0.0 for group in values]
    axes.errorbar(x, middles, widths, marker="o", markersize=3.5, linewidth=1.2, capsize=2, label=label)
    axes.grid(alpha=0.3)


def say(*words: object) -> None:
    """Print a line now."""
    print(*words, flush=True)


def chosen(rows: Iterable[Measurements], **values: object) -> list[Measurements]:
    """Return the rows that have some values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]

"""Command line, data, training, metrics and output of the experiments.

A run stores all measurements as `results/NAME.json`. The table `NAME.md` and the figure `NAME.png` are computed from
that file alone; `--redraw` writes them again without measuring.
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
"""Measurements as a JSON document. Keys of objects are strings, even if they are numbers."""

CIFAR10 = Preparation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), ("crop", "flip"))
_BATCH = 500


@dataclass(frozen=True)
class Experiment:
    """An experiment with a command line.

    Attributes:
        name: Name of its files in `results`.
        measure: Function of the path of the data, whether to run a few steps only, and the path of the checkpoint if
            there is one. Returns the measurements.
        document: Function that returns the measurements as Markdown, without the heading.
        draw: Function that plots the measurements into a figure.
        checkpoint: Description of the checkpoint that the experiment starts from, if any.
    """

    name: str
    measure: Callable[..., Measurements]
    document: Callable[[Measurements], str]
    draw: Callable[[Measurements, Figure], None]
    checkpoint: str | None = None

    def run(self, description: str) -> None:
        """Parse the command line, measure or read the measurements, and write the results."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--data", type=Path, help="file or folder with the data")
        if self.checkpoint:
            parser.add_argument("--checkpoint", type=Path, help=self.checkpoint)
        parser.add_argument("--output", type=Path, help="folder to write to, by default `results` beside this file")
        parser.add_argument("--quick", action="store_true", help="run a few steps only, as a test")
        parser.add_argument("--redraw", action="store_true", help="write table and figure of the stored measurements")
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
            parser.error("--quick needs another --output: the committed results are from complete runs")
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
    """Return a description of the processor, the number of threads and the versions."""
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
        folder: Folder with the files.
        preparation: Normalization and augmentation; by default training images are cropped and flipped at random.
    """
    parts = []
    for pattern in ("train_*.npz", "test.npz"):
        files = [np.load(path, allow_pickle=False) for path in sorted(folder.glob(pattern))]
        x, y = (torch.from_numpy(np.concatenate([file[name] for file in files])) for name in "xy")
        parts.append(Samples(f"{folder}/{pattern}", Arrays(x, y.long(), preparation)))
    return parts[0], parts[1].unaugmented()


def first(samples: Samples, count: int) -> Samples:
    """Return the first `count` samples."""
    return samples.subset(torch.arange(min(count, len(samples))))


def fit(
    model: nn.Module, samples: Samples, settings: Settings, *, val: Samples | None = None, log: Log | None = None
) -> None:
    """Train a network in place and keep the state with the best validation metric, or the last without validation data.

    Args:
        model: Network to train.
        samples: Training samples.
        settings: Training settings.
        val: Validation samples.
        log: Function that is called before training and after each epoch.
    """
    task = find_task(samples, probe(model, samples))
    objective = TrainingLoss(task, make_loss("auto", task))
    outcome = train(model, Data(samples, val), objective, Scorer([], task), settings, Execution(log=log))
    model.load_state_dict(outcome.state)


def score(model: nn.Module, samples: Samples, *metrics: str, amp: str = "no") -> dict[str, float]:
    """Return metrics of a network, by default its accuracy or R².

    The network is computed in float32, or in bfloat16 if `amp` is `bf16`, as in `Settings.amp`.
    """
    task = find_task(samples, probe(model, samples))
    with torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
        return Scorer(metrics, task)(model, samples, batch_size=_BATCH)


def accuracy(model: nn.Module, samples: Samples, *, amp: str = "no") -> float:
    """Return the percentage of samples that a network classifies correctly."""
    return round(100 * score(model, samples, "accuracy", amp=amp)["accuracy"], 2)


def retrained(
    model: nn.Module, samples: Samples, settings: Settings, test: Samples, epochs: Sequence[int]
) -> dict[str, float]:
    """Train a network in place and return its test accuracy, in percent, by number of epochs.

    With a constant learning rate, one run gives the results of separate runs of each length. The accuracies decide
    nothing.

    Args:
        model: Network to train.
        samples: Training samples.
        settings: Training settings, with the largest of `epochs` as the number of epochs.
        test: Test samples.
        epochs: Epochs after which to measure; 0 is before training.
    """
    found: dict[str, float] = {}

    def log(epoch: Epoch) -> None:
        if epoch.number in epochs:
            found[str(epoch.number)] = accuracy(model, test, amp=settings.amp)

    fit(model, samples, settings, log=log)
    return found


def parameters(model: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def filled(text: str) -> str:
    """Return Markdown with its paragraphs wrapped at 120 characters."""
    blocks = text.strip().split("\n\n")
    return "\n\n".join(block if block[0] in "|#" else fill(block, 120, break_on_hyphens=False) for block in blocks)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format values as mean ± standard deviation, or a single value as it is."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def curve(axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], label: str) -> None:
    """Plot the mean of the values at each x, with their standard deviation as an error bar."""
    middles = [mean(group) for group in values]
    widths = [stdev(group) if len(group) > 1 else 0.0 for group in values]
    axes.errorbar(x, middles, widths, marker="o", markersize=3.5, linewidth=1.2, capsize=2, label=label)
    axes.grid(alpha=0.3)


def say(*words: object) -> None:
    """Print a line and flush the output."""
    print(*words, flush=True)


def chosen(rows: Iterable[Measurements], **values: object) -> list[Measurements]:
    """Return the rows in which all given keys have the given values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]

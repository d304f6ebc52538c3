"""What a network is worth on data, before and after a brief fine-tune."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from lrzip.core.errors import UsageError
from lrzip.training.bench import Bench, make_bench
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.read import Data, read_parts
from lrzip.training.data.samples import Samples
from lrzip.training.losses import Teaching
from lrzip.training.settings import Settings


@dataclass(frozen=True)
class Learning:
    """What networks are measured on, and how they are tuned; all as in `lrzip.finetune`.

    Attributes:
        data: As `lrzip.data.read_data` takes it, or its result.
        val: Where the validation set is, where it is not in `data`.
        val_fraction: Share of the training set that becomes the validation set where there is no other.
        preparation: What becomes of inputs before the network gets them.
        image_size: Side to which images of folders are resized.
        loss: `auto`, `cross_entropy`, `mse`, `kl` or `pkg.mod:fn`.
        label_smoothing: Of cross entropy.
        metrics: The first decides; by default accuracy or R².
        teacher: A checkpoint of the dense network to learn from; by default the one that is compressed.
        teaching: How much it counts.
        settings: Of one brief fine-tune.
        device: Where to compute.
        workers: Processes that prepare batches.
    """

    data: str | Data
    val: str | None = None
    val_fraction: float = 0.1
    preparation: Preparation = field(default_factory=Preparation)
    image_size: int | None = None
    loss: str = "auto"
    label_smoothing: float = 0.0
    metrics: Sequence[str] = ()
    teacher: str | Path | None = None
    teaching: Teaching = field(default_factory=Teaching)
    settings: Settings = field(default_factory=lambda: Settings(epochs=3))
    device: str = "cpu"
    workers: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint.

    Attributes:
        scores: By metric, the first of which counts.
        examples: Number of examples of the validation set.
        task: What is learned.
    """

    scores: Mapping[str, float]
    examples: int
    task: str

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as `--json` prints them."""
        return {
            "task": self.task,
            "val_examples": self.examples,
            "metrics": {n: finite(v) for n, v in self.scores.items()},
        }


def evaluate(
    path: str | Path,
    *,
    model: nn.Module,
    learning: Learning,
    key: str | None = None,
    trust: bool = False,
) -> Evaluation:
    """Return the metrics of a checkpoint, dense or factorized, on the validation set.

    Args:
        path: The checkpoint.
        model: An instance of the dense architecture, changed in place.
        learning: What to measure on.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the files.

    Raises:
        LrzipError: The checkpoint does not fit the network, or the data neither.
    """
    return evaluation_of(make_bench(path, model, learning, distil=False, key=key, trust=trust))


def evaluation_of(bench: Bench) -> Evaluation:
    """Return the metrics of the network of a bench."""
    return Evaluation(bench.score(bench.model), len(bench.val), bench.task.kind)


def read_test(spec: str, learning: Learning) -> Samples:
    """Return the examples that `--test` names: a part `test`, or the only one."""
    parts = read_parts(spec, preparation=learning.preparation, image_size=learning.image_size, option="--test")
    if "test" not in parts and len(parts) > 1:
        raise UsageError(f"`--test {spec}` has the parts {', '.join(parts)}. Name one, such as `{spec}:test`.")
    return parts.get("test", next(iter(parts.values()))).unaugmented()


def finite(value: float | None) -> float | None:
    """Return a number as JSON can hold it: None for what is none."""
    return value if value is not None and isfinite(value) else None

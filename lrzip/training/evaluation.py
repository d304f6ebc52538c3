"""Evaluation of a checkpoint on data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lrzip.core.errors import UsageError
from lrzip.core.numbers import finite
from lrzip.core.options import Key
from lrzip.training.bench import Bench, make_bench
from lrzip.training.data.read import read_parts
from lrzip.training.data.samples import Samples
from lrzip.training.learning import Learning


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint.

    Attributes:
        scores: Values by metric; the first metric is the deciding one.
        examples: Number of samples of the validation set.
        task: `classification` or `regression`.
    """

    scores: Mapping[str, float]
    examples: int
    task: str

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as `--json` prints them."""
        return {
            "task": self.task,
            "val_examples": self.examples,
            "metrics": {name: finite(value) for name, value in self.scores.items()},
        }


def evaluate(
    path: str | Path,
    *,
    model: nn.Module,
    learning: Learning,
    key: Key = None,
    trust: bool = False,
) -> Evaluation:
    """Return the metrics of a checkpoint, dense or factorized, on the validation set.

    Args:
        path: The checkpoint.
        model: An instance of the dense architecture, changed in place.
        learning: Data and metrics.
        key: Entry of a nested file that holds the weights.
        trust: Whether reading may execute code from the files.

    Raises:
        LrzipError: The checkpoint or the data does not fit the network.
    """
    return evaluation_of(make_bench(path, model, learning, distil=False, key=key, trust=trust))


def evaluation_of(bench: Bench) -> Evaluation:
    """Return the metrics of the network of a bench on its validation set."""
    return Evaluation(bench.score(bench.model), len(bench.val), bench.task.kind)


def read_test(spec: str, learning: Learning) -> Samples:
    """Return the samples of a test set: its part `test`, or the only one.

    Raises:
        UsageError: There are several parts, none of which is called `test`.
    """
    parts = read_parts(spec, preparation=learning.preparation, image_size=learning.image_size, parameter="test")
    if "test" not in parts and len(parts) > 1:
        raise UsageError(f"`test={spec}` has the parts {', '.join(parts)}. Name one, such as `{spec}:test`.")
    return parts.get("test", next(iter(parts.values()))).unaugmented()

"""What a network is worth on data, before and after a brief fine-tune."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lrzip.core.errors import UsageError
from lrzip.training.bench import Bench, make_bench
from lrzip.training.data.read import read_parts
from lrzip.training.data.samples import Samples
from lrzip.training.learning import Learning
from lrzip.training.tasks import finite


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

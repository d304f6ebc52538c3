"""Measure and tune networks of one architecture on the same data."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from lrzip.core.chains import find_chains
from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.version import __version__
from lrzip.formats import FORMATS
from lrzip.formats.load import load_into
from lrzip.formats.open import open_checkpoint
from lrzip.networks.architecture import Architecture
from lrzip.networks.inference import match_names
from lrzip.training.cache import key_of, network_digest, samples_digest
from lrzip.training.data.read import Data, read_data
from lrzip.training.data.samples import Samples
from lrzip.training.forward import images_last, probe
from lrzip.training.learning import Learning
from lrzip.training.loop import train
from lrzip.training.losses import TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.outcomes import Outcome, StepCallback
from lrzip.training.processes import precision
from lrzip.training.settings import Settings
from lrzip.training.tasks import Task, find_task

POINTS: Mapping[str, float] = {"accuracy": 0.01, "top5": 0.01}
"""What one unit of a drop is in the metric; 1 for all others."""


_BATCH = 256
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Bench:
    """Measures and tunes networks of one architecture on the same data.

    Attributes:
        model: The network with the checkpoint in it, on the CPU.
        teacher: What is learned from beside labels.
        train: The training set.
        val: The validation set.
        learning: How.
        task: What is learned.
        scorer: The metrics.
    """

    model: nn.Module
    teacher: nn.Module | None
    train: Samples
    val: Samples
    learning: Learning
    task: Task
    scorer: Scorer

    def score(self, model: nn.Module, samples: Samples | None = None) -> dict[str, float]:
        """Return the metrics of a network on the validation set, or on other examples; it stays where it is."""
        device = torch.device(self.learning.device)
        if self.teacher is not None:
            self.teacher.to(device).eval()
        amp = self.learning.settings.amp
        with torch.autocast(device.type, _DTYPES.get(amp), enabled=amp != "no"):
            return self.scorer(
                model if device.type == "cpu" else copy.deepcopy(model).to(device),
                samples or self.val,
                target=self._objective.target if self.teacher is not None else None,
                device=device,
                batch_size=_BATCH,
            )

    def tune(self, model: nn.Module, settings: Settings, watch: StepCallback | None = None) -> Outcome:
        """Train a network, in place, and return its best state by the validation set."""
        return train(
            model,
            Data(self.train, self.val),
            self._objective,
            self.scorer,
            settings,
            device=self.learning.device,
            workers=self.learning.workers,
            watch=watch,
        )

    def gain(self, scores: Mapping[str, float]) -> float:
        """Return the metric that counts so that more is better."""
        return self.scorer.gain(scores)

    @property
    def unit(self) -> float:
        """What a drop of 1 is in the metric that counts: a point of 0.01 for shares, else 1."""
        return POINTS.get(self.scorer.first, 1.0)

    def input_shapes(self) -> tuple[str, ...]:
        """Return one example's inputs as `--input-shape` takes them; none where they are named."""
        inputs, _ = self.val.fetch([0])
        leaves = inputs if isinstance(inputs, tuple | list) else (inputs,)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return ()
        return tuple(f"{','.join(map(str, x.shape))}:{str(x.dtype).removeprefix('torch.')}" for x in leaves)

    @cached_property
    def identity(self) -> str:
        """A digest of all that results depend on but the network, the settings of a fine-tune and its seed.

        It takes a pass over the data.
        """
        learning = self.learning
        return key_of(
            __version__,
            samples_digest(self.train),
            samples_digest(self.val),
            learning.preparation.augment,
            learning.loss,
            learning.label_smoothing,
            list(self.scorer.metrics),
            network_digest(self.teacher) if self.teacher is not None else None,
            asdict(learning.distillation),
            learning.settings.amp,
            learning.device.partition(":")[0],
        )

    @cached_property
    def _objective(self) -> TrainingLoss:
        function = make_loss(self.learning.loss, self.task, label_smoothing=self.learning.label_smoothing)
        return TrainingLoss(self.task, function, teacher=self.teacher, distillation=self.learning.distillation)


def make_bench(
    path: str | Path,
    model: nn.Module,
    learning: Learning,
    *,
    distil: bool,
    key: str | None = None,
    trust: bool = False,
) -> Bench:
    """Load a checkpoint into its network and read the data.

    Args:
        path: The checkpoint.
        model: An instance of the dense architecture, changed in place.
        learning: What to measure on.
        distil: Whether the network itself is the teacher where there is no other; it must be dense then.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the files.

    Raises:
        LrzipError: The checkpoint does not fit the network, or the data neither.
    """
    blank = copy.deepcopy(model)
    if distil:
        refuse_factorized(Path(path), model, key=key, trust=trust)
    load_into(model, path, key=key, trust=trust)
    teacher = load_into(blank, learning.teacher, trust=trust) if learning.teacher is not None else None
    if teacher is None and distil:
        teacher = copy.deepcopy(model)
    data = learning.data if isinstance(learning.data, Data) else _read(learning)
    if data.val is None or not len(data.val):
        raise UsageError("There is no validation set. Give `--val SPEC`, or a `--val-fraction` above 0.")
    task = task_of(model, data, learning.loss)
    images = images_last(copy.deepcopy(model), data.train)
    amp = precision(learning.settings.amp, learning.device, images=images)
    learning = replace(learning, settings=replace(learning.settings, amp=amp))
    return Bench(model, teacher, data.train, data.val, learning, task, Scorer(learning.metrics, task))


def task_of(model: nn.Module, data: Data, loss: str) -> Task:
    """Return what is learned, after checking that both sets fit the network.

    Raises:
        LrzipError: One of them does not.
    """
    task = _task_of(model, data.train, loss)
    if data.val is not None and replace(_task_of(model, data.val, loss), labelled=task.labelled) != task:
        raise LrzipError(f"`{data.val.name}` has labels of another kind than `{data.train.name}`.")
    return task


def refuse_factorized(path: Path, model: nn.Module, *, key: str | None, trust: bool) -> None:
    """Refuse a program, which cannot be trained, and a checkpoint that is factorized already."""
    with open_checkpoint(path, key=key, trust=trust) as checkpoint:
        if FORMATS[checkpoint.format].is_program:
            raise LrzipError(f"`{path}` is a program, which cannot be tuned. Take the weights it was made from.")
        architecture = Architecture.of(model)
        specs = match_names(path, checkpoint.tensors(), architecture)
        chains = find_chains({name: spec.renamed(name) for name, spec in specs.items()}, architecture.kinds)
    if chains:
        raise LrzipError(
            f"`{path}` is factorized already, at `{chains[0].module}`. Give the dense checkpoint it was made from, or "
            "multiply it back with `lrzip export --to dense`."
        )


def _read(learning: Learning) -> Data:
    assert isinstance(learning.data, str)
    return read_data(
        learning.data,
        val=learning.val,
        val_fraction=learning.val_fraction,
        preparation=learning.preparation,
        image_size=learning.image_size,
        seed=learning.settings.seed,
    )


def _task_of(model: nn.Module, samples: Samples, loss: str) -> Task:
    return find_task(samples, probe(model, samples), distance=loss)

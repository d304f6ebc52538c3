"""Measurement and fine-tuning of networks of one architecture on the same data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.options import Key
from lrzip.core.stored import find_structures
from lrzip.core.version import __version__
from lrzip.formats.load import load_into
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Runnable
from lrzip.networks.architecture import Architecture
from lrzip.networks.inputs import input_names
from lrzip.networks.matching import match_names
from lrzip.networks.state import copy_of
from lrzip.training.cache import key_of, network_digest, samples_digest
from lrzip.training.data.read import Data, read_data
from lrzip.training.data.samples import Samples
from lrzip.training.forward import use_channels_last
from lrzip.training.learning import Learning
from lrzip.training.loop import Execution, train
from lrzip.training.losses import TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.outcomes import Outcome, StepCallback
from lrzip.training.processes import precision
from lrzip.training.settings import Settings
from lrzip.training.tasks import Task, task_of
from lrzip.training.tokens import with_alignment

# The drops of these metrics are measured in percentage points.
_UNITS = {"accuracy": 0.01, "top5": 0.01}
_BATCH = 256
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Bench:
    """Measures and fine-tunes networks of one architecture on the same data.

    Attributes:
        model: The network with the weights of the checkpoint, on the CPU.
        teacher: The network to distil from, in addition to the labels; None without distillation.
        train: The training set.
        val: The validation set.
        learning: Data, loss, metrics and hyperparameters.
        task: The task.
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
        """Return the metrics of a network on the validation set, or on other samples. The network is not moved."""
        device = torch.device(self.learning.device)
        if self.teacher is not None:
            self.teacher.to(device).eval()
        amp = self.learning.settings.amp
        with torch.autocast(device.type, _DTYPES.get(amp), enabled=amp != "no"):
            return self.scorer(
                model if device.type == "cpu" else copy_of(model).to(device),
                (samples or self.val).bound(input_names(self.model)),
                target=self._objective.target if self.teacher is not None else None,
                device=device,
                batch_size=_BATCH,
            )

    def tune(self, model: nn.Module, settings: Settings, watch: StepCallback | None = None) -> Outcome:
        """Train a network in place and return its best state by the validation metric."""
        execution = Execution(device=self.learning.device, workers=self.learning.workers, watch=watch)
        return train(model, Data(self.train, self.val), self._objective, self.scorer, settings, execution)

    def gain(self, scores: Mapping[str, float]) -> float:
        """Return the deciding metric, negated if lower is better."""
        return self.scorer.gain(scores)

    @property
    def unit(self) -> float:
        """The change of the deciding metric that counts as a drop of 1: a percentage point for accuracies, else 1."""
        return _UNITS.get(self.scorer.first, 1.0)

    def input_shapes(self) -> tuple[str, ...]:
        """Return the shapes of the inputs in the form of `input_shapes`; empty if inputs are named."""
        inputs, _ = self.val.fetch([0])
        leaves = inputs if isinstance(inputs, tuple | list) else (inputs,)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return ()
        return tuple(f"{','.join(map(str, x.shape))}:{str(x.dtype).removeprefix('torch.')}" for x in leaves)

    @cached_property
    def identity(self) -> str:
        """Digest of all that results depend on, except the network and the settings and seed of a fine-tune.

        It reads all of the data once.
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
            asdict(self.task),
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
    key: Key = None,
    trust: bool = False,
) -> Bench:
    """Load a checkpoint into its network and read the data.

    Args:
        path: The checkpoint.
        model: An instance of the dense architecture, changed in place.
        learning: Data, loss, metrics and hyperparameters.
        distil: Whether the network itself, which must be dense, is the teacher if no other is given.
        key: Entry of a nested file that holds the weights.
        trust: Whether reading may execute code from the files.

    Raises:
        UsageError: There is no validation set.
        LrzipError: The checkpoint or the data does not fit the network.
    """
    blank = copy_of(model)
    if distil:
        _require_dense(Path(path), model, key=key, trust=trust)
    load_into(model, path, key=key, trust=trust)
    teacher = load_into(blank, learning.teacher, trust=trust) if learning.teacher is not None else None
    if teacher is None and distil:
        teacher = copy_of(model)
    data = learning.data if isinstance(learning.data, Data) else _read(learning.data, learning)
    data = data.bound(input_names(model))
    if data.val is None or not len(data.val):
        raise UsageError(f"`{data.train.name}` has no validation set. Give `val=SPEC`, or a `val_fraction` above 0.")
    task = with_alignment(model, data.train, task_of(model, data, learning.loss), learning.loss)
    images = use_channels_last(copy_of(model), data.train)
    amp = precision(learning.settings.amp, learning.device, images=images)
    learning = replace(learning, settings=replace(learning.settings, amp=amp))
    return Bench(model, teacher, data.train, data.val, learning, task, Scorer(learning.metrics, task))


def _require_dense(path: Path, model: nn.Module, *, key: Key, trust: bool) -> None:
    """Refuse a program, which cannot be trained, and a checkpoint that is factorized already."""
    with open_checkpoint(path, key=key, trust=trust) as checkpoint:
        if isinstance(checkpoint, Runnable):
            raise LrzipError(
                f"`{path}` is a program, which cannot be fine-tuned. Give the weights that it was exported from."
            )
        architecture = Architecture.of(model)
        specs = match_names(path, checkpoint.tensors(), architecture)
        stored = find_structures({name: spec.renamed(name) for name, spec in specs.items()}, architecture.dense_layers)
    if stored:
        raise LrzipError(
            f"`{path}` is factorized already, at `{stored[0].module}`. Give the dense checkpoint it was made from, or "
            "merge its factors into dense weights with `lrzip export --to dense`."
        )


def _read(spec: str, learning: Learning) -> Data:
    return read_data(
        spec,
        val=learning.val,
        val_fraction=learning.val_fraction,
        preparation=learning.preparation,
        image_size=learning.image_size,
        seed=learning.settings.seed,
    )

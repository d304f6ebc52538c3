"""Data, loss, metrics and hyperparameters with which networks are measured and fine-tuned."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.read import Data
from lrzip.training.losses import Distillation
from lrzip.training.settings import Settings


@dataclass(frozen=True)
class Learning:
    """Data, loss, metrics and hyperparameters; each attribute has the meaning that it has in `lrzip.finetune`.

    Attributes:
        data: Specification of the data as `lrzip.training.data.read.read_data` takes it, or its result.
        val: Specification of the validation set, if it is not a part of `data`.
        val_fraction: Share of the training set that is split off as the validation set, if there is no other.
        preparation: Normalization and augmentation of the inputs.
        image_size: Side in pixels to which images of folders are resized.
        loss: `auto`, `cross_entropy`, `mse`, `kl` or `pkg.mod:fn`.
        label_smoothing: Label smoothing of the cross entropy, in [0, 1).
        metrics: Names of metrics, the first of which is the deciding one; by default accuracy or R².
        teacher: Dense checkpoint for distillation; by default the checkpoint that is compressed.
        distillation: Weight and temperature of the distillation.
        settings: Hyperparameters of one brief fine-tune.
        device: Device to compute on.
        workers: Number of processes that prepare batches.
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
    distillation: Distillation = field(default_factory=Distillation)
    settings: Settings = field(default_factory=lambda: Settings(epochs=3))
    device: str = "cpu"
    workers: int = 0

"""What networks are measured on, and how they are tuned."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.read import Data
from lrzip.training.losses import Distillation
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
        distillation: How much it counts.
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
    distillation: Distillation = field(default_factory=Distillation)
    settings: Settings = field(default_factory=lambda: Settings(epochs=3))
    device: str = "cpu"
    workers: int = 0

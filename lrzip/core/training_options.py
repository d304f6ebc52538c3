"""Options of data, training and search, by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lrzip.core.declarations import option
from lrzip.core.options import BOUND, CURVE

MEASURED = (CURVE, BOUND)
"""Modes of `compress` that measure networks on data."""


@dataclass(frozen=True)
class DataOptions:
    """Training and validation data."""

    heading: ClassVar[str] = "Data"

    data: str | None = option(
        None,
        "file.npz, .safetensors or .pt with arrays x, y or train_x, train_y; a folder of images, one subfolder a "
        "class; or pkg.mod:callable that returns a Dataset, a DataLoader, or a (train, validation) pair.",
        metavar="SPEC",
        modes=MEASURED,
    )
    val: str | None = option(
        None, "Validation set, unless it is part of `data`.", metavar="SPEC", modes=MEASURED, goes_with=("data",)
    )
    val_fraction: float = option(
        0.1,
        "Share of the training set that becomes the validation set if there is none.",
        modes=MEASURED,
        goes_with=("data",),
    )
    image_size: int | None = option(
        None,
        "Side length in pixels to which images of folders are resized.",
        minimum=1,
        modes=MEASURED,
        goes_with=("data",),
    )
    metrics: Sequence[str] = option(
        (),
        "Metrics: accuracy, top5, r2, rmse, mae or pkg.mod:fn:max (:min if lower is better); the first one decides.",
        flag="--metric",
        shown="accuracy or r2",
        modes=MEASURED,
        goes_with=("data",),
        parsed=list[str] | None,
    )


@dataclass(frozen=True)
class PreparationOptions:
    """The fields of `Preparation` on the command line."""

    heading: ClassVar[str] = "Data"

    mean: str | None = option(
        None, "Means to subtract from inputs, one per channel.", metavar="NUMBERS", goes_with=("data", "calibrate")
    )
    std: str | None = option(
        None,
        "Standard deviations to divide inputs by, one per channel.",
        metavar="NUMBERS",
        goes_with=("data", "calibrate"),
    )
    augment: str | None = option(
        None,
        "Random changes of training images: crop,flip.",
        metavar="NAMES",
        goes_with=("calibrate", "max_drop"),
    )


@dataclass(frozen=True)
class Batching:
    """Loss and batches of measurements and training."""

    heading: ClassVar[str] = "Training"

    loss: str = option("auto", "auto, cross_entropy, mse, kl or pkg.mod:fn.", modes=MEASURED, goes_with=("data",))
    workers: int = option(
        0, "Number of processes that prepare batches.", minimum=0, modes=MEASURED, goes_with=("data",)
    )


@dataclass(frozen=True)
class BatchOptions:
    """The fields of `Settings` on which measurements depend."""

    heading: ClassVar[str] = "Training"

    batch_size: int | None = option(
        None,
        "Samples per step, over all processes.",
        shown="128, less for few samples",
        modes=MEASURED,
        goes_with=("data",),
    )
    amp: str = option(
        "auto",
        "Precision of computations, with float32 weights: bf16, fp16, no (float32), or auto: bf16 for convolutions of "
        "images on devices that support it.",
        modes=MEASURED,
        goes_with=("data",),
    )


@dataclass(frozen=True)
class StepOptions:
    """The fields of `Settings` that every training takes."""

    heading: ClassVar[str] = "Training"

    lr: float | None = option(None, "Highest learning rate.", shown="3e-3, sgd 5e-2", modes=(BOUND,))
    freeze_batchnorm: bool = option(False, "Keep the running statistics of batch norms.", modes=(BOUND,))


@dataclass(frozen=True)
class Teacher:
    """The teacher of a brief training."""

    heading: ClassVar[str] = "Training"

    teacher: str | None = option(
        None, "Checkpoint of the teacher for distillation.", metavar="DENSE", shown="CHECKPOINT itself", modes=(BOUND,)
    )


@dataclass(frozen=True)
class DistillationOptions:
    """The fields of `Distillation` on the command line."""

    heading: ClassVar[str] = "Training"

    temperature: float | None = option(
        None,
        "Temperature at which class distributions are compared with the teacher's.",
        shown="logits are compared",
        modes=(BOUND,),
    )
    teacher_share: float | None = option(
        None, "Share of the teacher in the loss, beside labels.", shown="0.5", modes=(BOUND,)
    )
    optimizer: str = option("adamw", "adamw, adam or sgd.", modes=(BOUND,))


@dataclass(frozen=True)
class Bound:
    """Search for the smallest network within a bound on its metric."""

    heading: ClassVar[str] = "Within a bound"

    max_drop: float | None = option(
        None,
        "Largest drop of the metric on validation data, in percentage points of accuracy or in units of another "
        "metric. Finds the smallest network within it, with training. Needs `model` and `data`.",
        metavar="D",
        modes=(BOUND,),
        needs=("model", "data"),
    )
    strategy: str | None = option(
        None,
        "Strategy of the search: global, adaptive, uniform, selective, avoid-critical, ratio or energy.",
        shown="global",
        modes=(BOUND,),
    )
    test: str | None = option(None, "Test set, evaluated once, after all decisions.", metavar="SPEC", modes=(BOUND,))
    epochs: int = option(3, "Passes over the training set in each brief fine-tune.", modes=(BOUND,))
    steps: int | None = option(None, "Steps of each brief fine-tune, instead of epochs.", modes=(BOUND,))
    log: Path | None = option(
        None,
        "File to which a line of JSON is appended for each trial. The folder FILE.states beside it holds the networks "
        "that later trials start from, and finally the smallest one within the bound.",
        metavar="FILE",
        modes=(BOUND,),
    )
    resume: bool = option(False, "Continue from the trials in `log`.", modes=(BOUND,))


@dataclass(frozen=True)
class SensitivityOptions:
    """Measurement of each layer alone."""

    heading: ClassVar[str] = "Sensitivity"

    sensitivity: bool = option(
        False, "Factorize each layer alone, and measure the metric on `data`.", goes_with=("data",)
    )
    decomposition: str = option(
        "svd",
        "Decomposition of the layers that it takes: svd, tucker, spatial-vertical, …; the SVD replaces all others.",
        goes_with=("sensitivity",),
    )
    finetune_steps: int = option(
        0, "Steps of a fine-tune after each factorization; 0 measures without one.", goes_with=("sensitivity",)
    )
    runs: int = option(1, "Number of seeds for these fine-tunes.", goes_with=("sensitivity",))
    cache: Path | None = option(
        None, "File for results, from which none is measured twice.", metavar="FILE", goes_with=("sensitivity",)
    )


@dataclass(frozen=True)
class SplitSeed:
    """The seed of data and training."""

    heading: ClassVar[str] = "Training"

    seed: int = option(0, "Seed of splits, order, augmentation and dropout.")


@dataclass(frozen=True)
class Smoothing:
    """Smoothing of labels."""

    heading: ClassVar[str] = "Training"

    label_smoothing: float = option(0.0, "Share of each label that is spread over all classes.")


@dataclass(frozen=True)
class TrainedModules:
    """Modules to train, by glob on their names."""

    heading: ClassVar[str] = "Training"

    only: Sequence[str] = option(
        (),
        "Globs of the modules to train, with all that they contain; all others are frozen.",
        metavar="GLOB",
        parsed=list[str] | None,
    )
    skip: Sequence[str] = option(
        (), "Globs of the modules to freeze, with all that they contain.", metavar="GLOB", parsed=list[str] | None
    )


@dataclass(frozen=True)
class FinetuneTeacher:
    """The teacher of a fine-tune."""

    heading: ClassVar[str] = "Training"

    teacher: str | Path | None = option(
        None,
        "Checkpoint of the teacher for distillation; without labels, only its outputs count.",
        metavar="DENSE",
        parsed=str | None,
    )


@dataclass(frozen=True)
class LayerMatching:
    """Distillation of layers."""

    heading: ClassVar[str] = "Training"

    match_layers: float | None = option(
        None, "Weight of the difference between outputs of factorized layers and the teacher's.", shown="0"
    )


@dataclass(frozen=True)
class FinetuneOptions:
    """The other fields of `Settings` on the command line."""

    heading: ClassVar[str] = "Training"

    weight_decay: float | None = option(None, "Weight decay, of weights only.", shown="adamw 1e-2, sgd 1e-4, adam 0")
    schedule: str = option("cosine", "cosine, plateau or constant.")
    warmup: float = option(0.05, "Share of the steps over which the learning rate rises.")
    clip: float = option(1.0, "Largest norm of gradients; 0 does not clip.")
    epochs: int = option(10, "Passes over the training set.")
    steps: int | None = option(None, "Total number of steps, instead of epochs.")
    patience: int | None = option(None, "Epochs without a better score after which training stops.")
    shard: bool = option(False, "Shard weights and optimizer over the processes of torchrun (FSDP).")


@dataclass(frozen=True)
class FinetuneFiles:
    """Files of a fine-tune."""

    heading: ClassVar[str] = "Training"

    resume: str | Path | None = option(
        None,
        "File for the state of the training, which continues from it if it exists.",
        metavar="FILE",
        parsed=Path | None,
    )
    log: str | Path | None = option(
        None, "File to which a line of JSON is appended for each epoch.", metavar="FILE", parsed=Path | None
    )

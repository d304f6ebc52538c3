"""How a network is trained."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lrzip.core.errors import UsageError
from lrzip.training.schedules import SCHEDULES

OPTIMIZERS = ("adamw", "adam", "sgd")
PRECISIONS = ("auto", "no", "bf16", "fp16")
_BATCH, _SMALLEST_BATCH, _STEPS_AN_EPOCH = 128, 16, 32
# Of 3e-4, 1e-3 and 3e-3, by validation sets: the best for small perceptrons and convolutional networks on ten epochs of
# 1100 to 14 000 examples, and of the last two for 150 steps of a ResNet-20; none diverged, nor did SGD at 5e-2.
_RATES = {"adamw": 3e-3, "adam": 3e-3, "sgd": 5e-2}
_DECAYS = {"adamw": 1e-2, "adam": 0.0, "sgd": 1e-4}


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training set.
        steps: Steps in all, in place of epochs.
        batch_size: Examples a step, over all processes together; by default 128, but fewer where an epoch would have
            less than 32 steps, down to 16.
        optimizer: `adamw`, `adam` or `sgd` (with Nesterov's momentum of 0.9).
        lr: Learning rate at its highest; by default 3e-3, of SGD 5e-2.
        weight_decay: Of weights, not of biases and norms; by default 1e-2 for AdamW, 1e-4 for SGD.
        schedule: `cosine`, `plateau` or `constant`.
        warmup: Share of the steps over which the rate rises.
        clip: Norm that gradients are clipped to; 0 leaves them.
        amp: What the network computes in, with float32 weights: `no` for float32, `bf16` or `fp16`; `auto` is `bf16`
            for networks that convolve images where the device computes in it natively, else `no`.
        freeze_batchnorm: Keep the running statistics of batch norms, and normalize by them.
        patience: Epochs without a better score after which training stops; None goes on.
        seed: Of order, augmentation and dropout.
        shard: Share out weights, gradients and the optimizer's state among the processes of torchrun.
    """

    epochs: int = 10
    steps: int | None = None
    batch_size: int | None = None
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float = 1.0
    amp: str = "auto"
    freeze_batchnorm: bool = False
    patience: int | None = None
    seed: int = 0
    shard: bool = False

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--schedule", self.schedule, SCHEDULES),
            ("--amp", self.amp, PRECISIONS),
        ):
            if value not in known:
                raise UsageError(f"`{option}` takes {', '.join(known)}, got `{value}`.")
        if self.shard and self.amp == "fp16":
            raise UsageError("`--shard` computes in bf16 or float32. Leave out `--amp fp16`.")
        for option, count in (("--epochs", self.epochs), ("--batch-size", self.batch_size), ("--steps", self.steps)):
            if count is not None and count < 1:
                raise UsageError(f"`{option}` takes a whole number from 1 on, got {count}.")
        for option, number in (("--weight-decay", self.weight_decay), ("--clip", self.clip)):
            if number is not None and not number >= 0:
                raise UsageError(f"`{option}` takes a number from 0 on, got {number:g}.")
        if self.lr is not None and not self.lr > 0:
            raise UsageError(f"`--lr` takes a number above 0, got {self.lr:g}.")
        if not 0 <= self.warmup <= 1:
            raise UsageError(f"`--warmup` takes a share of the steps from 0 to 1, got {self.warmup:g}.")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"`--patience` takes a number of epochs from 1 on, got {self.patience}.")

    def batch(self, examples: int) -> int:
        """Return the batch size for a training set of a number of examples."""
        if self.batch_size is not None:
            return min(self.batch_size, examples)
        return min(max(examples // _STEPS_AN_EPOCH, _SMALLEST_BATCH), _BATCH, examples)

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return _RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """The weight decay."""
        return _DECAYS[self.optimizer] if self.weight_decay is None else self.weight_decay


def make_optimizer(parameters: Iterable[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer; biases and the parameters of norms, which are vectors, do not decay."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": settings.decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.rate, momentum=0.9, nesterov=True)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, settings.rate, fused=True)

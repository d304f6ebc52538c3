"""Hyperparameters of a training."""

from dataclasses import dataclass

from lrzip.core.errors import UsageError
from lrzip.training.schedules import SCHEDULES

OPTIMIZERS = ("adamw", "adam", "sgd")
PRECISIONS = ("auto", "no", "bf16", "fp16")
_BATCH, _SMALLEST_BATCH, _STEPS_PER_EPOCH = 128, 16, 32
# 3e-3 was chosen on validation sets: it is the best of 3e-4, 1e-3 and 3e-3 for small perceptrons and convolutional
# networks in ten epochs of 1100 to 14 000 samples, and better than 1e-3 for 150 steps of a ResNet-20. No training
# diverged, nor did any with SGD at 5e-2.
_RATES = {"adamw": 3e-3, "adam": 3e-3, "sgd": 5e-2}
_DECAYS = {"adamw": 1e-2, "adam": 0.0, "sgd": 1e-4}


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of a training.

    Attributes:
        epochs: Number of passes over the training set.
        steps: Total number of steps, in place of epochs.
        batch_size: Samples per step, over all processes; by default 128, or fewer if an epoch would have fewer than
            32 steps, but at least 16 if there are that many samples.
        optimizer: `adamw`, `adam` or `sgd` (with Nesterov momentum of 0.9).
        lr: Peak learning rate; by default 3e-3, for SGD 5e-2.
        weight_decay: Weight decay of matrices, not of biases and norms; by default 1e-2 for AdamW, 1e-4 for SGD.
        schedule: `cosine`, `plateau` or `constant`.
        warmup: Share of the steps over which the rate rises.
        clip: Norm to which gradients are clipped; 0 does not clip.
        amp: Precision of the forward pass, with float32 weights: `no` for float32, `bf16` or `fp16`; `auto` is `bf16`
            for networks that convolve images where the device computes in it natively, else `no`.
        freeze_batchnorm: Keep the running statistics of batch norms and normalize by them.
        patience: Number of epochs without a better score after which training stops; None never stops early.
        seed: Seed of the order of samples, of augmentation and of dropout.
        shard: Shard weights, gradients and optimizer state across the processes of torchrun.
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
        self._check_names()
        self._check_numbers()

    def batch(self, samples: int) -> int:
        """Return the batch size for a training set with a number of samples."""
        if self.batch_size is not None:
            return min(self.batch_size, samples)
        return min(max(samples // _STEPS_PER_EPOCH, _SMALLEST_BATCH), _BATCH, samples)

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return _RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """The weight decay."""
        return _DECAYS[self.optimizer] if self.weight_decay is None else self.weight_decay

    def _check_names(self) -> None:
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("amp", self.amp, PRECISIONS),
        ):
            if value not in known:
                raise UsageError(f"`{name}` takes {', '.join(known)}, got `{value}`.")
        if self.shard and self.amp == "fp16":
            raise UsageError("`shard=True` computes in bf16 or float32. Leave out `amp=fp16`.")

    def _check_numbers(self) -> None:
        for name, count in (("epochs", self.epochs), ("batch_size", self.batch_size), ("steps", self.steps)):
            if count is not None and count < 1:
                raise UsageError(f"`{name}` takes a whole number from 1 on, got {count}.")
        for name, number in (("weight_decay", self.weight_decay), ("clip", self.clip)):
            if number is not None and not number >= 0:
                raise UsageError(f"`{name}` takes a number from 0 on, got {number:g}.")
        if self.lr is not None and not self.lr > 0:
            raise UsageError(f"`lr` takes a number above 0, got {self.lr:g}.")
        if not 0 <= self.warmup <= 1:
            raise UsageError(f"`warmup` takes a share of the steps from 0 to 1, got {self.warmup:g}.")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"`patience` takes a number of epochs from 1 on, got {self.patience}.")

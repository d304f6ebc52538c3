"""How to calibrate."""

from dataclasses import dataclass, field
from pathlib import Path

from lrzip.calibration.corrections import Corrections
from lrzip.core.errors import UsageError
from lrzip.training.data.augmentation import Preparation

DEFAULT_CORRECTIONS = Corrections(bias=True, sequential=True, residual=True, refit=True, response=True)
_GIGABYTE = 1 << 30


@dataclass(frozen=True)
class CalibrationSettings:
    """How to calibrate.

    Attributes:
        samples: How many of the given examples are used, picked at random; all where there are fewer.
        batch_size: Examples that go through the network at a time.
        corrections: What is made up for; None for all that is possible.
        preparation: What becomes of inputs of files before the network gets them.
        positions: About how many positions of a layer are looked at, over all examples; of images, every few lines.
        memory: Bytes that second moments may take at a time; more layers than that make several passes.
        seed: Of the choice of examples.
        reconstruct: Steps of a training that brings the outputs of the factorized network near to those of its own, at
            the end; the preparation's random changes are for it alone.
        save: File for what is seen, which can take the place of examples later.
    """

    samples: int = 1024
    batch_size: int = 128
    corrections: Corrections | None = None
    preparation: Preparation = field(default_factory=Preparation)
    positions: int = 1 << 16
    memory: int = 2 * _GIGABYTE
    seed: int = 0
    reconstruct: int = 0
    save: Path | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "positions", "memory"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"The {name.replace('_', ' ')} of a calibration must be at least 1, got {getattr(self, name)}."
                )
        if self.save and self.save.suffix != ".safetensors":
            raise UsageError(f"`--save-statistics` takes a .safetensors file, got `{self.save}`.")
        if self.reconstruct < 0:
            raise UsageError(f"`reconstruct` takes a number of steps, got {self.reconstruct}.")
        if self.preparation.augment and not self.reconstruct:
            raise UsageError("`--augment` is for what is trained. With `--calibrate` it goes with `--reconstruct`.")

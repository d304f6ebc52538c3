"""Settings of a calibration."""

from dataclasses import dataclass, field
from pathlib import Path

from lrzip.calibration.corrections import Corrections
from lrzip.core.errors import UsageError
from lrzip.training.data.augmentation import Preparation

DEFAULT_CORRECTIONS = Corrections(bias=True, sequential=True, residual=True, refit=True, response=True)
_GIGABYTE = 1 << 30


@dataclass(frozen=True)
class CalibrationSettings:
    """Settings of a calibration.

    Attributes:
        samples: Number of samples to use, chosen at random; all of them if there are fewer.
        batch_size: Samples per batch.
        corrections: Corrections to make; None for all that are possible.
        preparation: Normalization of the inputs of files. Its augmentation applies to the reconstruction only.
        positions: Approximate number of spatial positions per layer to use over all samples, by skipping rows.
        memory: Bytes that second moments may take at a time; layers that need more are observed in several passes.
        seed: Seed of the choice of samples.
        reconstruct: Number of training steps that bring the outputs of the factorized network close to the dense ones
            at the end.
        save: File to write the statistics to, which can replace the samples later.
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
            raise UsageError(f"`save_statistics` takes a .safetensors file, got `{self.save}`.")
        if self.reconstruct < 0:
            raise UsageError(f"`reconstruct` takes a number of steps, got {self.reconstruct}.")
        if self.preparation.augment and not self.reconstruct:
            raise UsageError("`augment` is for what is trained. With `calibrate` it goes with `reconstruct`.")

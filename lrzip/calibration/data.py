"""Calibration data: samples chosen at random, as arguments for calls of a network."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.utils import _pytree as pytree

from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.moments import Arguments
from lrzip.training.data.read import read_inputs
from lrzip.training.data.samples import Arrays, Samples

CalibrationData = str | Path | Tensor | Samples
"""A specification as `calibrate` takes it, a tensor of inputs (n, …), or samples."""


def choose_samples(data: CalibrationData, settings: CalibrationSettings) -> Samples:
    """Return the wanted number of samples, chosen at random.

    Raises:
        LrzipError: The calibration data cannot be read.
    """
    if isinstance(data, str | Path):
        found = read_inputs(str(data), preparation=settings.preparation)
    elif isinstance(data, Tensor):
        found = Samples("the calibration data", Arrays(data, None, settings.preparation))
    else:
        found = data
    order = torch.randperm(len(found), generator=Generator().manual_seed(settings.seed))
    return found.subset(order[: settings.samples])


def batches_of(
    samples: Samples, settings: CalibrationSettings, dtype: torch.dtype | None, *, positional: bool = False
) -> Iterator[Arguments]:
    """Yield batches of one size, since a program may accept no other; the remaining samples are dropped.

    Args:
        samples: Calibration data.
        settings: Batch size and seed.
        dtype: Dtype that floating-point inputs are converted to; None leaves them unchanged.
        positional: Whether named inputs, which are in the order of the network's, are given by position.
    """
    size = min(settings.batch_size, len(samples))
    for start in range(0, len(samples) // size * size, size):
        x, _ = samples.fetch(range(start, start + size), seed=settings.seed)
        cast = pytree.tree_map_only(Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, x)
        if isinstance(cast, Mapping):
            yield (tuple(cast.values()), {}) if positional else ((), dict(cast))
        else:
            yield (tuple(cast) if isinstance(cast, tuple | list) else (cast,)), {}

"""Preparation of inputs: scaling, normalization, random crops and flips."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lrzip.core.errors import LrzipError, UsageError

AUGMENTATIONS = ("crop", "flip")
_CHANNELS = (1, 3, 4)
# Images are shifted by up to an eighth of their side: the usual 4 of 32 pixels.
_SHIFT = 8


@dataclass(frozen=True)
class Preparation:
    """Normalization and augmentation of inputs.

    Attributes:
        mean: Values to subtract, one or one per channel (per feature for flat inputs).
        std: Values to divide by after that.
        augment: Random changes of the training set: `crop` shifts an image, `flip` mirrors it left to right.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: tuple[str, ...] = ()

    @classmethod
    def parse(cls, mean: str | None, std: str | None, augment: str | None) -> "Preparation":
        """Parse a preparation from texts such as `0.5,0.5,0.5`, `0.2` and `crop,flip`.

        Raises:
            UsageError: A text is not a list of numbers or names in its range.
        """
        names = tuple(name.strip() for name in augment.split(",")) if augment else ()
        for name in names:
            if name not in AUGMENTATIONS:
                raise UsageError(f"`augment` takes {', '.join(AUGMENTATIONS)}, got `{name}`.")
        deviations = _numbers("std", std)
        if any(value <= 0 for value in deviations):
            raise UsageError(f"`std` takes numbers above 0, got `{std}`.")
        return cls(_numbers("mean", mean), deviations, names)


def _numbers(name: str, text: str | None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"`{name}` takes numbers such as `0.5,0.4,0.4`, got `{text}`.") from error
    if not all(isfinite(number) for number in numbers):
        raise UsageError(f"`{name}` takes finite numbers, got `{text}`.")
    return numbers


def prepare(x: Tensor, preparation: Preparation) -> Tensor:
    """Return a batch of inputs as floating-point numbers, channels first and normalized.

    Pixels are scaled to [0, 1]: uint8 and uint16 of any shape, and other integers of three or more dimensions. Other
    integers are indices and are returned as int64.

    Args:
        x: Inputs (n, …); images of integers are (n, height, width) or have their channels first or last.
        preparation: Normalization.

    Raises:
        LrzipError: The numbers of means and of channels differ.
    """
    if not x.is_floating_point():
        if not _are_pixels(x):
            return x.long()
        x = channels_first(x).to(torch.get_default_dtype()) / (65535 if x.dtype == torch.uint16 else 255)
    x = x.to(torch.get_default_dtype())
    for values, operation in ((preparation.mean, torch.sub), (preparation.std, torch.div)):
        if values:
            x = operation(x, _per_channel(values, x))
    return x


def plain(x: Tensor) -> Tensor:
    """Return a batch of a further input: numbers and pixels as `prepare` does, masks and indices as they are."""
    if x.dtype == torch.bool:
        return x
    return x.long() if x.ndim < 3 and not x.is_floating_point() else prepare(x, Preparation())


def channels_first(x: Tensor) -> Tensor:
    """Return images (n, height, width) or (n, height, width, channels) as (n, channels, height, width)."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] not in _CHANNELS and x.shape[-1] in _CHANNELS:
        return x.permute(0, 3, 1, 2)
    return x


def _are_pixels(x: Tensor) -> bool:
    return x.dtype in (torch.uint8, torch.uint16) or x.ndim > 2


def _per_channel(values: Sequence[float], x: Tensor) -> Tensor:
    if len(values) not in (1, x.shape[1] if x.ndim > 1 else 1):
        raise LrzipError(
            f"`--mean` and `--std` take 1 or {x.shape[1]} numbers for inputs of shape {tuple(x.shape[1:])}, "
            f"got {len(values)}."
        )
    return torch.tensor(values, dtype=x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))


def augment(x: Tensor, names: Sequence[str], draws: Tensor) -> Tensor:
    """Return randomly shifted and mirrored images.

    Args:
        x: Images (n, channels, height, width). Uncovered pixels become 0, the mean of normalized images.
        names: Names of `AUGMENTATIONS`.
        draws: Uniform numbers in [0, 1), (n, 3): the shifts down and right, and whether to flip.

    Raises:
        LrzipError: The inputs are not images.
    """
    if x.ndim != 4:
        raise LrzipError(f"`--augment` is for images, but inputs have shape {tuple(x.shape[1:])}.")
    count, (height, width) = len(x), x.shape[2:]
    rows = torch.arange(height).expand(count, height)
    columns = torch.arange(width).expand(count, width)
    if "crop" in names:
        padding = height // _SHIFT, width // _SHIFT
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        rows = rows + (draws[:, :1] * (2 * padding[0] + 1)).long()
        columns = columns + (draws[:, 1:2] * (2 * padding[1] + 1)).long()
    if "flip" in names:
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    images = torch.arange(count)[:, None, None]
    return x[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

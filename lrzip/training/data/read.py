"""Training, validation and test sets from files of arrays, folders of images, or user code."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Generator, randperm
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lrzip.core.errors import LrzipError, UsageError, typed_line
from lrzip.networks.build import locate
from lrzip.training.data.arrays import is_array_file, read_arrays
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.images import read_images
from lrzip.training.data.samples import Arrays, Samples, UserDataset

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Data:
    """A training set and an optional validation set."""

    train: Samples
    val: Samples | None

    def bound(self, inputs: Sequence[str]) -> "Data":
        """Return the same sets with the arrays that a network takes by name."""
        return Data(self.train.bound(inputs), None if self.val is None else self.val.bound(inputs))


def read_data(
    spec: str,
    *,
    val: str | None = None,
    val_fraction: float = 0.1,
    preparation: Preparation | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Data:
    """Return the training and the validation set of a specification. A test part is refused.

    Args:
        spec: `file.npz`, `.safetensors` or `.pt` with arrays `x` and `y`, or `train_x`, `train_y`, `val_x`, `val_y`; a
            folder of images, with one subfolder per class, or of such folders `train` and `val`; or
            `pkg.mod:callable`, which returns a Dataset, a DataLoader or a pair (train, val) of them. `file.npz:train`
            selects a part.
        val: Specification of the validation set, if it is not a part of `spec`.
        val_fraction: Share of the training set that is split off at random as the validation set, if there is no
            other; with 0 there is none.
        preparation: Normalization and augmentation of the inputs of files; only the training set is augmented.
        image_size: Side in pixels to which images of folders are resized.
        seed: Seed of the split.

    Raises:
        UsageError: A parameter is out of range, or names a test part.
        LrzipError: The data cannot be read or cannot be trained on.
    """
    if not 0 <= val_fraction < 1:
        raise UsageError(f"`val_fraction` takes a share from 0 to below 1, got {val_fraction:g}.")
    preparation = preparation or Preparation()
    parts = read_parts(spec, preparation=preparation, image_size=image_size)
    train = _selected(spec, parts, "train", "data")
    if val is not None:
        others = read_parts(val, preparation=preparation, image_size=image_size, parameter="val")
        return Data(train, _selected(val, others, "val", "val").unaugmented())
    if "val" in parts:
        return Data(train, parts["val"].unaugmented())
    return _split(train, val_fraction, seed)


def _split(train: Samples, val_fraction: float, seed: int) -> Data:
    count = round(val_fraction * len(train))
    if not count:
        return Data(train, None)
    if count >= len(train):
        raise LrzipError(f"`{train.name}` has {len(train)} samples, too few to split off a validation set.")
    order = randperm(len(train), generator=Generator().manual_seed(seed))
    return Data(train.subset(order[count:].sort().values), train.subset(order[:count].sort().values).unaugmented())


def read_inputs(spec: str, *, preparation: Preparation) -> Samples:
    """Return the calibration samples of a specification as `read_data` takes it.

    Raises:
        LrzipError: They cannot be read, or are a test part.
    """
    parts = read_parts(spec, preparation=preparation, parameter="calibrate")
    return _selected(spec, parts, "train", "calibrate")


def read_parts(
    spec: str, *, preparation: Preparation, image_size: int | None = None, parameter: str = "data"
) -> dict[str, Samples]:
    """Return all parts of a specification by name, `train`, `val` or `test`, or the one that it selects.

    Args:
        spec: Specification as `read_data` takes it.
        preparation: Normalization and augmentation of the inputs of files.
        image_size: Side in pixels to which images of folders are resized.
        parameter: Name of the parameter that the specification was given for, for messages.

    Raises:
        LrzipError: The data cannot be read.
    """
    name, part = _split_part(spec)
    path = Path(name)
    if path.is_dir():
        return _prepared(spec, _one_or_all(spec, read_images(path, image_size), part), preparation)
    if is_array_file(path):
        return _prepared(spec, _one_or_all(spec, read_arrays(path), part), preparation)
    if ":" in spec and not path.exists():
        if preparation != Preparation():
            raise UsageError(f"`{spec}` is code: let it normalize and augment, without `mean`, `std`, `augment`.")
        return _from_code(spec, parameter)
    if not path.exists():
        raise LrzipError(
            f"`{parameter}={spec}` does not exist. Give a file of arrays, a folder, or `pkg.mod:callable`."
        )
    raise LrzipError(
        f"`{path}` is not data that lrzip reads. Give .npz, .safetensors, .pt, a folder, or `pkg.mod:callable`."
    )


def _split_part(spec: str) -> tuple[str, str | None]:
    name, colon, part = spec.rpartition(":")
    return (name, part) if colon and part in PARTS and Path(name).exists() else (spec, None)


def _one_or_all(spec: str, parts: dict[str, Arrays], part: str | None) -> dict[str, Arrays]:
    if part is None:
        return parts
    if part not in parts:
        raise LrzipError(f"`{spec}`: there is no part `{part}`. There are: {', '.join(parts)}.")
    return {part: parts[part]}


def _prepared(spec: str, parts: dict[str, Arrays], preparation: Preparation) -> dict[str, Samples]:
    return {part: Samples(spec, arrays.prepared(preparation)) for part, arrays in parts.items()}


def _selected(spec: str, parts: dict[str, Samples], wanted: str, parameter: str) -> Samples:
    """Return the wanted part, or the first one that is not test data."""
    if wanted in parts:
        return parts[wanted]
    usable = [part for part in parts if part != "test"]
    if not usable:
        raise UsageError(f"`{parameter}={spec}` is test data, which must not influence the result. Give another part.")
    return parts[usable[0]]


def _from_code(spec: str, parameter: str) -> dict[str, Samples]:
    found = locate(spec, parameter)
    try:
        made = found() if callable(found) and not isinstance(found, Dataset | DataLoader) else found
    except Exception as error:
        raise LrzipError(f"`{spec}` failed: {typed_line(error)}.") from error
    given: Sequence[Any] = made if isinstance(made, tuple | list) and len(made) == 2 else (made,)
    return {part: _samples(spec, item) for part, item in zip(PARTS, given, strict=False)}


def _samples(spec: str, made: Any) -> Samples:
    loader = made if isinstance(made, DataLoader) else None
    dataset = loader.dataset if loader is not None else made
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or isinstance(dataset, IterableDataset):
        raise LrzipError(
            f"`{spec}` gave {type(made).__name__}; it takes a Dataset with a length, a DataLoader of one, or two."
        )
    if not len(dataset):
        raise LrzipError(f"`{spec}` gave a {type(dataset).__name__} without samples.")
    return Samples(spec, UserDataset(dataset, loader))

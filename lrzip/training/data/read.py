"""Examples to train and to validate on: from files of arrays, folders of images, or code of the user's."""

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
    """What a network is trained on and what steers the training; None where there is no validation set."""

    train: Samples
    val: Samples | None


def read_data(
    spec: str,
    *,
    val: str | None = None,
    val_fraction: float = 0.1,
    preparation: Preparation | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Data:
    """Return the training and the validation set that `--data` and `--val` name. A test part is refused.

    Args:
        spec: `file.npz`, `.safetensors` or `.pt` with arrays `x` and `y`, or `train_x`, `train_y`, `val_x`, `val_y`; a
            folder of images, one subfolder a class, or of such folders `train` and `val`; or `pkg.mod:callable`, which
            returns a Dataset, a DataLoader or a pair (train, val) of them. `file.npz:train` picks a part.
        val: Where the validation set is, where it is elsewhere.
        val_fraction: Share of the training set, picked at random, that becomes the validation set where there is no
            other; 0 does without.
        preparation: What becomes of the examples of files before the network gets them; only the training set is
            augmented.
        image_size: Side to which images of folders are resized.
        seed: Of the split.

    Raises:
        UsageError: An option is out of range, or names a test part.
        LrzipError: The data cannot be read or is not fit to train on.
    """
    if not 0 <= val_fraction < 1:
        raise UsageError(f"`--val-fraction` takes a share from 0 to below 1, got {val_fraction:g}.")
    prepared = preparation or Preparation()
    parts = read_parts(spec, preparation=prepared, image_size=image_size)
    train = _chosen(spec, parts, "train", "--data")
    if val is not None:
        others = read_parts(val, preparation=prepared, image_size=image_size, option="--val")
        return Data(train, _chosen(val, others, "val", "--val").unaugmented())
    if "val" in parts:
        return Data(train, parts["val"].unaugmented())
    count = round(val_fraction * len(train))
    if not count:
        return Data(train, None)
    if count >= len(train):
        raise LrzipError(f"`{spec}` has {len(train)} examples, too few to split a validation set off.")
    order = randperm(len(train), generator=Generator().manual_seed(seed))
    return Data(train.subset(order[count:].sort().values), train.subset(order[:count].sort().values).unaugmented())


def read_inputs(spec: str, *, preparation: Preparation) -> Samples:
    """Return the examples that `--calibrate` names, as `read_data` takes them.

    Raises:
        LrzipError: They cannot be read, or are a test part.
    """
    parts = read_parts(spec, preparation=preparation, option="--calibrate")
    return _chosen(spec, parts, "train", "--calibrate")


def read_parts(
    spec: str, *, preparation: Preparation, image_size: int | None = None, option: str = "--data"
) -> dict[str, Samples]:
    """Return the parts of what `--data` names, by `train`, `val` and `test`, or the one that it picks.

    Raises:
        LrzipError: It cannot be read.
    """
    name, part = _split_part(spec)
    path = Path(name)
    if path.is_dir():
        return _prepared(spec, _picked(spec, read_images(path, image_size), part), preparation)
    if is_array_file(path):
        return _prepared(spec, _picked(spec, read_arrays(path), part), preparation)
    if ":" in spec and not path.exists():
        if preparation != Preparation():
            raise UsageError(f"`{spec}` is code: let it normalize and augment, without `--mean`, `--std`, `--augment`.")
        return _from_code(spec, option)
    if not path.exists():
        raise LrzipError(f"`{option} {spec}` does not exist. Give a file of arrays, a folder, or `pkg.mod:callable`.")
    raise LrzipError(f"`{path}` is no data that lrzip reads: .npz, .safetensors, .pt, a folder, or `pkg.mod:callable`.")


def _split_part(spec: str) -> tuple[str, str | None]:
    name, colon, part = spec.rpartition(":")
    return (name, part) if colon and part in PARTS and Path(name).exists() else (spec, None)


def _picked(spec: str, parts: dict[str, Arrays], part: str | None) -> dict[str, Arrays]:
    if part is None:
        return parts
    if part not in parts:
        raise LrzipError(f"`{spec}`: there is no part `{part}`. There are: {', '.join(parts)}.")
    return {part: parts[part]}


def _prepared(spec: str, parts: dict[str, Arrays], preparation: Preparation) -> dict[str, Samples]:
    return {part: Samples(spec, arrays.prepared(preparation)) for part, arrays in parts.items()}


def _chosen(spec: str, parts: dict[str, Samples], wanted: str, option: str) -> Samples:
    """Return the wanted part, or the only one; never test data."""
    if wanted in parts:
        return parts[wanted]
    usable = [part for part in parts if part != "test"]
    if not usable:
        raise UsageError(f"`{option} {spec}` is test data, which steers nothing. Give another part.")
    return parts[usable[0]]


def _from_code(spec: str, option: str) -> dict[str, Samples]:
    found = locate(spec, option)
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
        raise LrzipError(f"`{spec}` gave a {type(dataset).__name__} without examples.")
    return Samples(spec, UserDataset(dataset, loader))

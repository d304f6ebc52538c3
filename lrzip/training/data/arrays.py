"""Files of arrays: `.npz`, `.safetensors` and `.pt`. Nothing in them is executed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lrzip.core.documents import Place
from lrzip.core.errors import LrzipError, one_line
from lrzip.core.tensors import tensor
from lrzip.formats.torch.plain import read_plain
from lrzip.training.data.npz import check_npz
from lrzip.training.data.samples import Arrays

_SUFFIXES = (".npz", ".safetensors", ".pt", ".pth")
_PARTS = ("train", "val", "test")
_WANTED = {"x", "y", *(f"{part}_{leaf}" for part in _PARTS for leaf in "xy")}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_array_file(path: Path) -> bool:
    """Return whether a path is a file with the suffix of a file of arrays."""
    return path.is_file() and path.suffix.lower() in _SUFFIXES


def read_arrays(path: Path) -> dict[str, Arrays]:
    """Return the parts of a file: `x` and `y` as `train`, or `train_x`, `val_x`, `test_x` with their labels.

    Labels are optional. All other arrays with as many rows are inputs by name, such as `attention_mask`, or
    `train_attention_mask`; without any `x`, all inputs are, and the labels may be called `labels`.

    Raises:
        LrzipError: The file is damaged or has no such arrays, or they contain NaN or have different numbers of rows.
    """
    arrays = _load(path)
    prefixes = {"train": ""} if "x" in arrays else {part: f"{part}_" for part in _PARTS}
    parts = {part: _part(path, arrays, prefix) for part, prefix in prefixes.items() if f"{prefix}x" in arrays}
    if not parts:
        parts = {"train": named} if (named := _named_part(path, arrays)) else {}
    if not parts:
        raise LrzipError(
            f"`{path}` has no array `x` or `train_x`. It has: {', '.join(list(arrays)[:8]) or 'no arrays'}."
        )
    return parts


def _load(path: Path) -> Mapping[str, Tensor]:
    """Return the arrays of numbers, and empty ones for the names of all others."""
    readers = {".safetensors": _load_safetensors, ".npz": _load_npz}
    try:
        return readers.get(path.suffix.lower(), _load_pt)(path)
    except (LrzipError, MemoryError):
        raise
    except Exception as error:  # the libraries raise errors of any type on damaged files
        raise LrzipError(f"The data in `{path}` cannot be read: {one_line(error)}.") from error


def _load_safetensors(path: Path) -> Mapping[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _load_npz(path: Path) -> Mapping[str, Tensor]:
    check_npz(path)
    # By handle, since NumPy does not close files that it opened itself if they are damaged.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {name: _tensor(path, name, file) for name in file.files}


def _load_pt(path: Path) -> Mapping[str, Tensor]:
    place = Place(f"`{path}`", "Save a dict of dense tensors with torch.save.")
    content = read_plain(path, place, only=_WANTED)
    if not isinstance(content, dict):
        raise LrzipError(f"`{path}` holds a {type(content).__name__}, not a dict of tensors.")
    arrays = {name: tensor()(content[name], place.at(name)) for name in content.keys() & _WANTED}
    others = {str(name): value for name, value in content.items() if name not in _WANTED}
    return arrays | {name: torch.empty(0) if value is None else value for name, value in others.items()}


def _tensor(path: Path, name: str, file: Mapping[str, np.ndarray]) -> Tensor:
    try:
        array = file[name]
    except ValueError:
        if name in _WANTED:
            raise
        return torch.empty(0)
    if name not in _WANTED and array.dtype.kind not in "biuf":
        return torch.empty(0)  # names of features, for example
    if array.dtype.kind in "USV":
        raise LrzipError(f"`{path}`: `{name}` holds texts ({array.dtype}). Give numbers; classes count from 0.")
    return torch.from_numpy(array)


def _part(path: Path, arrays: Mapping[str, Tensor], prefix: str) -> Arrays:
    x_name, y_name = f"{prefix}x", f"{prefix}y"
    x, y = arrays[x_name], arrays.get(y_name)
    for name, array in ((x_name, x), (y_name, y)):
        if array is not None:
            _check(path, name, array)
    if y is not None and len(x) != len(y):
        raise LrzipError(f"`{path}`: `{x_name}` has {len(x)} rows and `{y_name}` has {len(y)}. Give equally many.")
    others = {name: array for name, array in arrays.items() if name.startswith(prefix) and name not in _WANTED}
    named = {name.removeprefix(prefix): array for name, array in others.items() if array.ndim and len(array) == len(x)}
    return Arrays(x, None if y is None else _labels(y), named=named)


def _named_part(path: Path, arrays: Mapping[str, Tensor]) -> Arrays | None:
    """Return samples all of whose inputs have names, or None if the arrays do not have one number of rows."""
    counts = {len(array) for array in arrays.values() if array.ndim}
    if len(counts) != 1 or counts == {0}:
        return None
    for name, array in arrays.items():
        _check(path, name, array)
    labels = next((arrays[name] for name in ("y", "labels") if name in arrays), None)
    named = {name: array for name, array in arrays.items() if name not in ("y", "labels")}
    return Arrays(None, None if labels is None else _labels(labels), named=named) if named else None


def _check(path: Path, name: str, array: Tensor) -> None:
    if not array.ndim or not len(array):
        raise LrzipError(f"`{path}`: `{name}` of shape {tuple(array.shape)} holds no samples.")
    if array.is_complex():
        raise LrzipError(f"`{path}`: `{name}` is complex. Give real numbers.")
    if array.is_floating_point() and array.dtype not in _FLOATS:
        raise LrzipError(f"`{path}`: `{name}` is {str(array.dtype).removeprefix('torch.')}. Give float32.")
    if array.is_floating_point():
        bad = ~torch.isfinite(array.flatten(1) if array.ndim > 1 else array[:, None]).all(1)
        if bool(bad.any()):
            raise LrzipError(
                f"`{path}`: `{name}` has NaN or infinite values in {int(bad.sum())} rows, the first is row "
                f"{int(bad.nonzero()[0])}. Remove them."
            )


def _labels(y: Tensor) -> Tensor:
    """Return classes as int64, (n,) for (n, 1), and regression targets in torch's default dtype."""
    if y.is_floating_point():
        return y.to(torch.get_default_dtype())
    return (y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y).long()

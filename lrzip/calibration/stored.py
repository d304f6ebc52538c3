"""Statistics of a calibration in a file: safetensors with the moments of each layer."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrzip.calibration.result import Calibration
from lrzip.core.documents import Place, Record, each, mapping, number, optional, parse_json, record, text, whole
from lrzip.core.errors import LrzipError, one_line
from lrzip.core.layers import Layer
from lrzip.core.moments import MeasuredChanges, Moments
from lrzip.core.tensors import tensor
from lrzip.formats.files.atomic import atomic_file

_KEY = "lrzip.calibration"
# Inputs of layers whose squares are larger would overflow float32 when they multiply weights.
_LARGEST = 1e30
# Second moments are sums of float32 products, so they satisfy inequalities up to rounding only.
_ROUNDING = 1e-3
_ROWS = 256


def save_statistics(calibration: Calibration, path: Path) -> None:
    """Write the statistics of a calibration; the file appears when it is complete."""
    statistics = calibration.statistics
    tensors = {f"{name}.{part}": getattr(statistics[name], part) for name in statistics for part in ("second", "first")}
    layers = {name: _entry(moments) for name, moments in statistics.items()}
    document = {"examples": calibration.examples, "count": calibration.count, "layers": layers}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, {_KEY: json.dumps(document)})


def holds_statistics(path: Path) -> bool:
    """Return whether a file was written by `save_statistics`."""
    try:
        return path.suffix == ".safetensors" and path.is_file() and _metadata(path) is not None
    except Exception:  # a damaged file is reported where it is read as calibration data
        return False


def load_statistics(path: Path, layers: Sequence[Layer]) -> Calibration:
    """Read the statistics of some layers. There is no network to run, so that no corrections can be made.

    Raises:
        LrzipError: The file is damaged, or has layers of other sizes, or none of these.
    """
    place = Place(f"`{path}`", "Calibrate again, with `save_statistics=FILE`.")
    try:
        metadata = _metadata(path)
    except Exception as error:  # safetensors raises errors of its own type, and those of torch
        raise place.fault(f"is damaged: {one_line(error)}") from error
    document = record(parse_json(metadata or "", place), place)
    document.read("examples", text)
    count = document.read("count", whole(1))
    entries = {name: _read_entry(item) for name, item in document.read("layers", mapping(record)).items()}
    found: dict[str, Moments] = {}
    for layer in layers:
        if layer.name in entries:
            second, first = (_read_tensor(path, f"{layer.name}.{part}", place) for part in ("second", "first"))
            _check_moments(layer, second, first, place)
            number_of_inputs, fisher, measured = entries[layer.name]
            found[layer.name] = Moments(second, first, number_of_inputs, fisher, measured)
    if not found:
        raise place.fault("has statistics of none of these layers")
    return Calibration(str(path), count, layers, found)


def _entry(moments: Moments) -> dict[str, Any]:
    measured = asdict(moments.measured) if moments.measured else None
    return {"count": moments.count, "influence": moments.fisher, "measured": measured}


def _read_entry(item: Record) -> tuple[int, float | None, MeasuredChanges | None]:
    measured = item.read("measured", optional(record))
    fisher = item.read("influence", optional(number(0, _LARGEST)))
    return item.read("count", whole()), fisher, _read_changes(measured) if measured else None


def _read_changes(item: Record) -> MeasuredChanges:
    ranks, changes = item.read("ranks", each(whole(1))), item.read("changes", each(number(0, _LARGEST)))
    if len(ranks) != len(changes) or any(a >= b for a, b in pairwise(ranks)):
        raise item.place.fault("must have ascending ranks and as many changes")
    return MeasuredChanges(ranks, changes)


def _read_tensor(path: Path, name: str, place: Place) -> Tensor:
    with safe_open(path, "pt") as file:  # its header was checked
        if name not in file.keys():  # noqa: SIM118, it is no mapping
            raise place.at(name).fault("is missing")
        found = file.get_tensor(name)
    if found.dtype != torch.float64:
        raise place.at(name).fault(f"must be float64, got {str(found.dtype).removeprefix('torch.')}")
    return tensor(largest=_LARGEST)(found, place.at(name))


def _check_moments(layer: Layer, second: Tensor, first: Tensor, place: Place) -> None:
    """Refuse what are not the moments of inputs of a layer: E[x]² ≤ E[x²] and E[xᵢ xⱼ]² ≤ E[xᵢ²] E[xⱼ²].

    The second moments of an embedding are those of one-hot vectors, which equal the first.
    """
    sizes = (layer.groups, layer.input_size)
    expected = sizes if layer.kind.is_indexed else (*sizes, layer.input_size)
    if tuple(first.shape) != sizes or tuple(second.shape) != expected:
        raise LrzipError(
            f"{place.file} is of another network: `{layer.name}` has moments of shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)} in it and {sizes} and {expected} here. {place.remedy}"
        )
    squares = second if layer.kind.is_indexed else second.diagonal(dim1=1, dim2=2)
    if bool((squares < 0).any()):
        raise place.at(f"{layer.name}.second").fault(f"must have mean squares from 0 on, got {float(squares.min()):g}")
    limits = (1 + _ROUNDING) * squares
    fit = bool((first <= limits if layer.kind.is_indexed else first.square() <= limits).all())
    if not fit or not (layer.kind.is_indexed or _are_products(second, limits)):
        raise place.at(f"{layer.name}.second").fault("holds no second moments that fit the first")


def _are_products(second: Tensor, limits: Tensor) -> bool:
    """Return whether no square of a product exceeds the product of the squares; some rows at a time, to save memory."""
    rows = zip(torch.split(second, _ROWS, 1), torch.split(limits, _ROWS, 1), strict=True)
    return all(bool((part.square() <= limit[:, :, None] * limits[:, None, :]).all()) for part, limit in rows)


def _metadata(path: Path) -> str | None:
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(_KEY)

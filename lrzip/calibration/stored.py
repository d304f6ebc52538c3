"""Statistics of a calibration in a file: safetensors with the moments of each layer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrzip.calibration.result import Calibration
from lrzip.core.errors import LrzipError
from lrzip.core.layers import Layer
from lrzip.core.moments import MeasuredChanges, Moments
from lrzip.formats.files.atomic import atomic_file

_KEY = "lrzip.calibration"


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
    return path.suffix == ".safetensors" and path.is_file() and _document(path) is not None


def load_statistics(path: Path, layers: Sequence[Layer]) -> Calibration:
    """Read the statistics of some layers. There is no network to run, so that no corrections can be made.

    Raises:
        LrzipError: The file has layers of other sizes, or none of these.
    """
    document = _document(path)
    assert document is not None, "callers check `holds_statistics`"
    found: dict[str, Moments] = {}
    with safe_open(path, "pt") as file:
        for layer in layers:
            if layer.name not in document["layers"]:
                continue
            second, first = (file.get_tensor(f"{layer.name}.{part}") for part in ("second", "first"))
            if first.shape != (layer.groups, layer.input_size):
                raise LrzipError(
                    f"`{path}` is of another network: `{layer.name}` has (groups, columns) {tuple(first.shape)} in it "
                    f"and {(layer.groups, layer.input_size)} here. Calibrate again."
                )
            found[layer.name] = _moments(second, first, document["layers"][layer.name])
    if not found:
        raise LrzipError(
            f"`{path}` has statistics of none of these layers. Calibrate again, with `save_statistics=FILE`."
        )
    return Calibration(str(path), document["count"], layers, found)


def _entry(moments: Moments) -> dict[str, Any]:
    measured = asdict(moments.measured) if moments.measured else None
    return {"count": moments.count, "influence": moments.fisher, "measured": measured}


def _moments(second: Tensor, first: Tensor, entry: Mapping[str, Any]) -> Moments:
    changes = entry.get("measured")
    measured = MeasuredChanges(**{name: tuple(values) for name, values in changes.items()}) if changes else None
    return Moments(second, first, entry["count"], entry["influence"], measured)


def _document(path: Path) -> Any:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except Exception:  # a damaged file is reported where it is read as calibration data
        return None
    return None if text is None else json.loads(text)

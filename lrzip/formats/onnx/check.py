"""Check ONNX models with onnx's checker, which is stricter than onnxruntime."""

from pathlib import Path

import onnx
import torch

from lrzip.core.errors import LrzipError, UnsupportedCheckpoint, one_line
from lrzip.core.limited import run_limited
from lrzip.formats.onnx.run import check_loads, is_installed, limits_of


def complaint_of(model: Path | bytes) -> str | None:
    """Return what onnx's checker finds wrong in a file or a serialized model, or None."""
    try:
        onnx.checker.check_model(str(model.absolute()) if isinstance(model, Path) else model)
    except Exception as error:
        return one_line(error, 200)
    return None


def refuse_invalid(path: Path, model: Path | bytes, nbytes: int, complaint: str) -> None:
    """Refuse a model in which the checker finds a fault if onnxruntime does not load it either.

    Args:
        path: Path of the model, for messages.
        model: Path of the model, or the serialized model if it was repaired.
        nbytes: Size of the model.
        complaint: What the checker finds wrong.

    Raises:
        UnsupportedCheckpoint: The model is not valid.
    """
    if not is_installed():
        return
    try:
        run_limited(check_loads, model, torch.get_num_threads(), limits=limits_of(nbytes))
    except (LrzipError, RuntimeError) as error:
        raise UnsupportedCheckpoint(f"`{path}` is not a valid ONNX model: {complaint}.") from error

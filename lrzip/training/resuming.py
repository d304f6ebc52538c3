"""The state of a training in a file, from which it goes on as if it had never stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lrzip.core.errors import LrzipError
from lrzip.formats.files.atomic import atomic_file

_VERSION = 1
_KEYS = {"lrzip_training", "settings", "model", "optimizer", "scaler", "best", "step", "history", "loss", "seconds"}


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; the file is replaced at once."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        torch.save({"lrzip_training": _VERSION, **state}, file)


def load_state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state in a file, or None if there is no such file yet.

    Args:
        path: Of the file.
        settings: What the training was begun with, by the names of its options; it must be the same.

    Raises:
        LrzipError: The file is damaged, of something else, or of another training.
    """
    if not path.exists():
        return None
    if path.is_dir():
        raise LrzipError(f"`--resume {path}` is a folder. Give the name of a file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise LrzipError(
            f"`{path}` is damaged or no state of a training, so it cannot be resumed. Remove it to begin anew."
        ) from error
    if not isinstance(state, dict) or state.keys() != _KEYS or state["lrzip_training"] != _VERSION:
        raise LrzipError(f"`{path}` holds no state of a training by this lrzip. Give `--resume` another name.")
    for name in dict.fromkeys([*settings, *state["settings"]]):
        then, now = state["settings"].get(name), settings.get(name)
        if then != now:
            raise LrzipError(
                f"`{path}` is of a training with {name} {then}, and now it is {now}. Remove it to begin anew."
            )
    return state

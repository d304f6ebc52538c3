"""The state_dicts of a search, in memory or in a folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lrzip.core.documents import Place, mapping
from lrzip.core.errors import LrzipError
from lrzip.core.tensors import tensor
from lrzip.formats.files.atomic import atomic_file
from lrzip.formats.torch.plain import read_plain


class States:
    """State_dicts by key.

    Args:
        folder: Folder of one file per state, which outlives the process; None keeps states in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, Mapping[str, Tensor]] = {}

    def put(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Store a state.

        Raises:
            LrzipError: The file cannot be written.
        """
        if self._folder is None:
            self._held[key] = state
            return
        try:
            self._folder.mkdir(exist_ok=True)
            with atomic_file(self._path(key)) as temporary:
                torch.save(dict(state), temporary)
        except OSError as error:
            raise LrzipError(f"Could not write `{self._folder}`: {error.strerror}.") from error

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """Return a state, or None if there is none or its file cannot be read."""
        if self._folder is None:
            return self._held.get(key)
        path = self._path(key)
        place = Place(f"`{path}`", "It is computed again.")
        try:
            return mapping(tensor())(read_plain(path, place), place) if path.is_file() else None
        except LrzipError:
            return None

    def keep(self, *keys: str) -> None:
        """Delete all states but those of the given keys."""
        self._held = {key: state for key, state in self._held.items() if key in keys}
        if self._folder is not None and self._folder.is_dir():
            for path in self._folder.glob("*.pt"):
                if path.stem not in keys:
                    path.unlink()

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.pt"

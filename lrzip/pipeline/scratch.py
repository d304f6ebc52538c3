"""Store the subspaces of pass 1 on disk for pass 2; they may be half as large as the checkpoint."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedRandom
from math import prod
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from threading import Lock
from typing import TypeAlias

import torch
from torch import Tensor

from lrzip.core.errors import LrzipError
from lrzip.formats.files.atomic import is_stream
from lrzip.linalg.blocks.subspace import Subspace

Key: TypeAlias = tuple[str, str]
"""Names of a decomposition and of a layer."""


@dataclass(frozen=True)
class _Kept:
    """A subspace without its vectors, and the place of the vectors in the file."""

    subspace: Subspace
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Scratch:
    """Subspaces by decomposition and layer, each of which is taken once. Safe to use from several threads."""

    def __init__(self, file: BufferedRandom, folder: Path) -> None:
        self._file = file
        self._folder = folder
        self._lock = Lock()
        self._end = 0
        self._kept: dict[Key, list[_Kept]] = {}

    def put(self, key: Key, subspaces: Sequence[Subspace]) -> None:
        """Keep the subspaces of a layer: vectors in the file, all else in memory."""
        self._kept[key] = [self._put(subspace) for subspace in subspaces]

    def take(self, key: Key, device: str) -> tuple[Subspace, ...]:
        """Return the subspaces of a layer on a device, and forget them; none if none were kept."""
        return tuple(replace(kept.subspace, vectors=self._vectors(kept).to(device)) for kept in self._kept.pop(key, []))

    def _put(self, subspace: Subspace) -> _Kept:
        vectors = subspace.vectors.cpu().contiguous()
        with self._lock, self._writable():
            start = self._end
            self._file.seek(start)
            self._file.write(vectors.reshape(-1).view(torch.uint8).numpy().data)
            self._end = self._file.tell()
        return _Kept(replace(subspace, vectors=torch.empty(0)), start, tuple(vectors.shape), vectors.dtype)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LrzipError(f"Could not write temporary data in `{self._folder}`: {error.strerror}.") from error

    def _vectors(self, kept: _Kept) -> Tensor:
        data = bytearray(prod(kept.shape) * kept.dtype.itemsize)
        with self._lock:
            self._file.seek(kept.start)
            self._file.readinto(data)
        return torch.frombuffer(data, dtype=kept.dtype).reshape(kept.shape)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Scratch]:
    """Yield scratch storage in an unnamed file in the folder of a path, or in that of temporary files for a stream."""
    folder = Path(gettempdir()) if is_stream(path) else path.absolute().parent
    with TemporaryFile(prefix=".lrzip-", dir=folder) as file:
        yield Scratch(file, folder)

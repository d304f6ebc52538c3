"""What the first pass found and the second one needs, on disk, since it may be half as large as the checkpoint."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from lrzip.linalg.subspace import Subspace


class Scratch:
    """Subspaces of layers, by name, each of which is taken out once. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()
        self._kept: dict[str, list[tuple[Path, Subspace]]] = {}

    def put(self, name: str, subspaces: Sequence[Subspace]) -> None:
        """Keep the subspaces of a layer: their vectors in files, all else in memory."""
        kept = []
        for subspace in subspaces:
            path = self._folder / f"{next(self._numbers)}.safetensors"
            save_file({"vectors": subspace.vectors.cpu().contiguous()}, path)
            kept.append((path, replace(subspace, vectors=torch.empty(0))))
        self._kept[name] = kept

    def take(self, name: str, device: str) -> tuple[Subspace, ...]:
        """Return the subspaces of a layer, on a device, and forget them; none where none were kept."""
        found = []
        for path, subspace in self._kept.pop(name, []):
            found.append(replace(subspace, vectors=load_file(path, device=device)["vectors"]))
            path.unlink()
        return tuple(found)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Scratch]:
    """Yield a scratch in a hidden folder beside a path, which is gone afterwards."""
    with TemporaryDirectory(prefix=".lrzip-", dir=path.absolute().parent) as folder:
        yield Scratch(Path(folder))

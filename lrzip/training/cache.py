"""A cache of expensive results, so that nothing is computed twice, and the digests that its keys are made of."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.training.data.samples import Samples

_BATCH = 512


class Cache:
    """JSON documents by key, in memory and, if there is a path, in a file of JSON lines.

    Each document is written as one line as soon as it is stored, so a process that dies loses only the one that it was
    computing.

    Args:
        path: The file, whose documents are loaded.

    Raises:
        LrzipError: The file cannot be read, or holds anything else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        text = _read(path) if path and path.exists() else ""
        *lines, incomplete = text.split("\n")
        for number, line in enumerate(lines, 1):
            document = _parsed(line)
            if document is None:
                raise LrzipError(f"`{path}` holds no results of lrzip: see line {number}. Give another name.")
            self._known[document["key"]] = document
        # An incomplete last line is removed: a process died while writing it.
        if path and incomplete:
            _write(path, text.removesuffix(incomplete), append=False)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def lasting(self) -> bool:
        """Whether the documents outlive the process, so that keys must also distinguish the requests of other runs."""
        return self._path is not None

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return the document of a key, or None."""
        return self._known.get(key)

    def put(self, key: str, document: Mapping[str, Any]) -> None:
        """Store a document, which JSON must be able to represent.

        Raises:
            LrzipError: The file cannot be written.
        """
        self._known[key] = {"key": key, **document}
        if self._path:
            _write(self._path, json.dumps(self._known[key], allow_nan=False) + "\n", append=True)


def key_of(*parts: Any) -> str:
    """Return a digest of values that JSON can represent."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def network_digest(model: nn.Module) -> str:
    """Return a digest of the names, dtypes, shapes and values of all tensors of a network."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        _update(digest, tensor)
    return digest.hexdigest()


def samples_digest(samples: Samples) -> str:
    """Return a digest of the prepared inputs and the labels of samples, without augmentation."""
    digest = hashlib.blake2b(digest_size=16)
    plain = samples.unaugmented()
    for start in range(0, len(plain), _BATCH):
        batch = plain.fetch(range(start, min(start + _BATCH, len(plain))))
        for leaf in torch.utils._pytree.tree_leaves(batch):
            if isinstance(leaf, Tensor):
                _update(digest, leaf)
    return digest.hexdigest()


def _update(digest: Any, tensor: Tensor) -> None:
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) and isinstance(document.get("key"), str) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LrzipError(f"`{path}` cannot be read as results: {error}. Give another name.") from error


def _write(path: Path, text: str, *, append: bool) -> None:
    try:
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise LrzipError(f"Could not write `{path}`: {error.strerror}.") from error

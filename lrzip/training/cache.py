"""Results that are expensive, kept by what they are of, so that none is computed twice."""

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
    """Documents by key: in memory, and in a file of JSON lines if there is one.

    Each result is one line, written at once, so that a process that dies loses none but the one it is at.

    Args:
        path: The file; what it holds already is known from the beginning.

    Raises:
        LrzipError: The file holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        text = _read(path) if path and path.exists() else ""
        *whole, rest = text.split("\n")
        for number, line in enumerate(whole, 1):
            document = _parsed(line)
            if document is None:
                raise LrzipError(f"`{path}` holds no results of lrzip: see line {number}. Give another name.")
            self._known[document["key"]] = document
        # The process died while it wrote; the next line begins a new one in its place.
        if path and rest:
            _write(path, text.removesuffix(rest), append=False)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def lasting(self) -> bool:
        """Whether they outlive the process, so that keys must tell all apart that another one may ask for."""
        return self._path is not None

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return what is known of a key."""
        return self._known.get(key)

    def put(self, key: str, document: Mapping[str, Any]) -> None:
        """Keep a document, which JSON can hold."""
        self._known[key] = {"key": key, **document}
        if self._path:
            _write(self._path, json.dumps(self._known[key], allow_nan=False) + "\n", append=True)


def key_of(*parts: Any) -> str:
    """Return a digest of values that JSON can hold."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def network_digest(model: nn.Module) -> str:
    """Return a digest of all tensors of a network, with their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        _update(digest, tensor)
    return digest.hexdigest()


def samples_digest(samples: Samples) -> str:
    """Return a digest of examples as a network gets them, without random changes."""
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

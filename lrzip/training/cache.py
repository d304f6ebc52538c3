"""A cache of expensive results, so that nothing is computed twice, and the digests that its keys are made of."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lrzip.core.documents import Place, Record, parse_json, record
from lrzip.core.errors import LrzipError
from lrzip.networks.state import tensors_of
from lrzip.training.data.samples import Samples

T = TypeVar("T")

_BATCH = 512
_REMEDY = "Give another name."
# The beginning of each line. A file that does not have it in full is not replaced, however short it is.
_START = b'{"key": "'
_OURS = re.compile(rb'\{"key": "[0-9a-f]{24}"[,}]')


class Cache:
    """JSON documents by key, in memory and, if there is a path, in a file of JSON lines.

    Each document is written as one line as soon as it is stored, so a process that dies loses only the one that it was
    computing. Documents are read through typed readers; one that is damaged counts as unknown.

    Args:
        path: The file, whose documents are loaded.

    Attributes:
        added: Number of documents that were stored since.

    Raises:
        LrzipError: The file cannot be read, or holds anything else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.added = 0
        self._known: dict[str, Record] = {}
        if path is None or not path.exists():
            return
        *lines, incomplete = _read(path).split(b"\n")
        for number, line in enumerate(lines, 1):
            document = _parsed(line, Place(f"`{path}`", _REMEDY, path=f"line {number}"))
            self._known[document.fields["key"]] = document
        if incomplete:
            _remove_last(path, incomplete, len(lines) + 1)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def lasting(self) -> bool:
        """Whether the documents outlive the process, so that keys must also distinguish the requests of other runs."""
        return self._path is not None

    def get(self, key: str, read: Callable[[Record], T]) -> T | None:
        """Return the document of a key in its final type, or None if there is none that a reader takes.

        Args:
            key: The key.
            read: Returns the document in its final type; it raises LrzipError for a damaged one.
        """
        if key not in self._known:
            return None
        try:
            return read(self._known[key])
        except LrzipError:
            return None

    def put(self, key: str, document: Mapping[str, Any]) -> None:
        """Store a document, which JSON must be able to represent.

        Raises:
            LrzipError: The file cannot be written.
        """
        fields = {"key": key, **document}
        self.added += 1
        self._known[key] = Record(fields, Place("the results", _REMEDY))
        if self._path:
            _append(self._path, json.dumps(fields, allow_nan=False) + "\n")


def key_of(*parts: Any) -> str:
    """Return a digest of values that JSON can represent."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def network_digest(model: nn.Module) -> str:
    """Return a digest of the names, dtypes, shapes and values of all tensors of a network."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors_of(model).items():
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


def _parsed(line: bytes, place: Place) -> Record:
    """Return the document in a line, or refuse a line that this class did not write."""
    if not _OURS.match(line):
        raise place.fault("is no result of lrzip")
    return record(parse_json(line.decode(errors="replace"), place), place)


def _remove_last(path: Path, incomplete: bytes, number: int) -> None:
    """Remove an incomplete last line, which a process left that died while writing it.

    Raises:
        LrzipError: It does not begin like a document, so this class did not write it.
    """
    begins = incomplete.startswith(_START) or _START.startswith(incomplete)
    if not (_OURS.match(incomplete) or (begins and number > 1)):
        raise Place(f"`{path}`", _REMEDY, path=f"line {number}").fault("is no result of lrzip")
    try:
        os.truncate(path, path.stat().st_size - len(incomplete))
    except OSError as error:
        raise LrzipError(f"Could not write `{path}`: {error.strerror}.") from error


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise LrzipError(f"`{path}` cannot be read as results: it is no file. {_REMEDY}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise LrzipError(f"`{path}` cannot be read as results: {error.strerror}. {_REMEDY}") from error


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise LrzipError(f"Could not write `{path}`: {error.strerror}.") from error

"""Load files of torch.save by torch's restricted unpickler, after comparing what they claim with what they have.

That unpickler executes no code from a file, but it allocates what a file asks for and hashes every key.
"""

import math
from pathlib import Path
from typing import Any

import torch

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.files.inert import Handle, Inert, Name
from lrzip.formats.files.raw import Block
from lrzip.formats.torch.pickled import STORAGES, Pickled
from lrzip.formats.torch.saved import read_file

_BUILTINS = ("builtins", "__builtin__")
_ALLOCATING = ("Tensor", "Storage")


def load_guarded(path: Path, *, mmap: bool = False) -> Any:
    """Load a file of tensors, plain containers, numbers and strings; nothing in it is executed.

    Args:
        path: The file.
        mmap: Whether to map the tensors into memory, which only zip files allow.

    Raises:
        UnsupportedCheckpoint: The file claims more than it has.
        Exception: The file is damaged or holds other objects.
    """
    check_claims(path)
    return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)


def check_claims(path: Path) -> None:
    """Refuse a file of torch.save whose storages or calls ask for more memory than the file has bytes.

    Raises:
        UnsupportedCheckpoint: The file claims more than it has.
        Exception: The pickle is damaged.
    """
    pickled, size = read_file(path), path.stat().st_size
    for handle in pickled.handles:
        _check_storage(path, handle, pickled)
    for call in pickled.calls:
        _check_call(path, call, pickled, size)


def check_size(path: Path, name: str, nbytes: int, limit: int) -> None:
    """Refuse a tensor that takes far more bytes than the file has, since it repeats stored elements.

    Raises:
        UnsupportedCheckpoint: The tensor takes more than `limit`.
    """
    if nbytes > limit:
        raise UnsupportedCheckpoint(f"`{path}` is damaged: `{name}` takes {nbytes} bytes, more than are stored.")


def _check_storage(path: Path, handle: Handle, pickled: Pickled) -> None:
    identity = handle.identity
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        return
    _, of, key, _, count, *_ = identity
    stored = STORAGES.get(of.name) if isinstance(of, Name) else None
    nbytes = count * (stored.itemsize if stored else 1) if type(count) is int else -1
    if not 0 <= nbytes <= pickled.blocks.get(str(key), Block(0, 0)).nbytes:
        raise UnsupportedCheckpoint(
            f"`{path}` is damaged or not a checkpoint: the storage {key!r} claims more bytes than it has."
        )


def _check_call(path: Path, call: Inert, pickled: Pickled, size: int) -> None:
    """Check a call of a constructor that allocates what its arguments say, or of a function that fills a storage."""
    name, arguments = call.name, call.arguments
    if name is None:
        return
    if name.name == "_rebuild_from_type_v2" and len(arguments) > 2 and isinstance(arguments[0], Name):
        inner = arguments[2] if isinstance(arguments[2], tuple) else ()
        _check_call(path, Inert(arguments[0], inner), pickled, size)
        return
    raw = pickled.tensor(call)
    if raw is not None and raw.exceeds:
        raise UnsupportedCheckpoint(f"`{path}` is damaged or not a checkpoint: a tensor exceeds its storage.")
    counts: Any = ()
    if name.module in _BUILTINS or name.name.endswith(_ALLOCATING):
        counts = [argument for argument in arguments if type(argument) is int]
    elif name.name == "_rebuild_qtensor" and len(arguments) > 2:
        counts = arguments[2]
    if isinstance(counts, list | tuple) and all(type(count) is int for count in counts) and math.prod(counts) > size:
        raise UnsupportedCheckpoint(
            f"`{path}` is damaged or not a checkpoint: `{name}` claims more bytes than the file has."
        )

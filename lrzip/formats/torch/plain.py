"""Content of files of torch.save that hold containers, numbers, strings and tensors, without executing their pickle."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from torch import Tensor

from lrzip.core.documents import Place
from lrzip.core.errors import LrzipError, one_line
from lrzip.formats.files.inert import Inert, Key
from lrzip.formats.files.raw import RawTensor
from lrzip.formats.torch.pickled import Pickled, mapping_of
from lrzip.formats.torch.saved import read_file

_DEPTH = 100
# Tensors may share stored elements, so that all of them together may be larger than their file.
_SHARING = 4
_TENSORS = {
    "_rebuild_meta_tensor_no_storage": "a tensor without data (meta)",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantized tensor",
}


def read_plain(path: Path, place: Place, *, only: Container[str] | None = None) -> Any:
    """Return the content of a file of torch.save.

    Args:
        path: The file.
        place: Its place, for messages.
        only: Names of the entries of the outermost dict that must be readable. Of all others, only dense tensors are
            read, and None is returned for the rest.

    Raises:
        LrzipError: The file is damaged, claims more than it has, or holds other objects.
    """
    try:
        pickled = read_file(path)
        return _Reader(path, pickled).content(pickled.content, place, only)
    except (LrzipError, MemoryError):
        raise
    except Exception as error:  # damaged pickles raise errors of many types
        raise place.fault(f"is damaged or was not written by torch.save: {one_line(error)}") from error


class _Reader:
    """Reads the inert objects of a pickle as containers, constants and tensors."""

    def __init__(self, path: Path, pickled: Pickled) -> None:
        self._path, self._pickled = path, pickled
        self._left = _SHARING * path.stat().st_size
        self._read: dict[RawTensor, Tensor] = {}

    def content(self, value: Any, place: Place, only: Container[str] | None) -> Any:
        found = mapping_of(value)
        if only is None or found is None:
            return self._value(value, place, 0)
        read = {key: self._value if key in only else self._dense for key in found}
        return {key: read[key](item, _at(place, key), 1) for key, item in found.items()}

    def _dense(self, value: Any, place: Place, depth: int) -> Any:
        """Return a dense tensor, or None for anything else."""
        del depth
        raw = self._pickled.tensor(value)
        return None if raw is None else self._tensor(raw, place)

    def _value(self, value: Any, place: Place, depth: int) -> Any:
        self._pickled.count()
        if depth > _DEPTH:
            raise place.fault(f"is nested more than {_DEPTH} levels deep")
        raw = self._pickled.tensor(value)
        if raw is not None:
            return self._tensor(raw, place)
        found = mapping_of(value)
        if found is not None:
            return {key: self._value(item, _at(place, key), depth + 1) for key, item in found.items()}
        if type(value) in (list, tuple):
            return type(value)(self._value(item, place.at(index), depth + 1) for index, item in enumerate(value))
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value
        name = value.name if isinstance(value, Inert) else None
        raise place.fault(f"is {_TENSORS.get(name.name if name else '', f'an object of class {name}')}")

    def _tensor(self, raw: RawTensor, place: Place) -> Tensor:
        if raw not in self._read:
            raw.check(self._path, place.path)
            self._left -= 0 if raw.repeats else raw.numel * raw.dtype.itemsize
            if self._left < 0:
                raise place.fault("has tensors that claim more bytes than the file has")
            self._read[raw] = raw.read(self._path)
        return self._read[raw]


def _at(place: Place, key: Key) -> Place:
    return place.at(key if isinstance(key, str) else repr(key))

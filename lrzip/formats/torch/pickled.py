"""Tensors and modules among the inert objects of a pickle that torch.save wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lrzip.formats.files.inert import Handle, Inert, Key, Name
from lrzip.formats.files.raw import DTYPES, Block, RawTensor

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
"""Dtypes by the names of torch's classes of storages."""

_DICTS = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "dict"),
    ("__builtin__", "dict"),
}
_PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
_TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")


@dataclass
class Pickled:
    """Content of a file of torch.save, as inert objects.

    Attributes:
        content: The saved object.
        blocks: Bytes of each storage, by key.
        left: Number of entries that may still be visited, initially the size of the pickle. Only a pickle that refers
            to the same objects many times, and would unfold to a huge tree, has more entries than bytes.
        handles: All references to storages.
        calls: All calls of functions and classes.
    """

    content: Any
    blocks: Mapping[str, Block]
    left: int
    handles: Sequence[Handle] = ()
    calls: Sequence[Inert] = ()

    def tensor(self, value: Any) -> RawTensor | None:
        """Return the tensor that an inert object represents, or None if it is not a tensor or parameter."""
        name = value.name if isinstance(value, Inert) else None
        if name is None:
            return None
        if name.module == "torch._utils" and name.name in _PARAMETERS:
            return self.tensor(value.arguments[0])
        if name == ("torch._tensor", "_rebuild_from_type_v2"):  # tensor subclass: constructor, class, arguments
            function, _, arguments, *_ = value.arguments
            return self.tensor(Inert(function, arguments)) if isinstance(function, Name) else None
        if name.module == "torch._utils" and name.name in _TENSORS:
            return self._strided(*value.arguments)
        return None

    def _strided(self, storage: Handle, offset: int, shape: Any, strides: Any, *rest: Any) -> RawTensor | None:
        kind, of, key, *_ = storage.identity
        stored = STORAGES.get(of.name)
        dtype = DTYPES.get(rest[2].name) if len(rest) > 2 and isinstance(rest[2], Name) else stored
        if kind != "storage" or stored is None or dtype is None:
            return None  # quantized, so not a plain tensor
        view = storage.identity[5] if len(storage.identity) > 5 else None  # of legacy files: key, offset, size
        within = view[1] * stored.itemsize // dtype.itemsize if view else 0
        return RawTensor(self.blocks[str(key)], dtype, tuple(shape), tuple(strides), offset + within)

    def module(self, value: Any) -> dict[str, RawTensor | None] | None:
        """Return the state_dict of an inert object, or None if it is not a module.

        Its values are None where a parameter or buffer is not a plain tensor.
        """
        state = mapping_of(value.state) if isinstance(value, Inert) else None
        if state is None or "_modules" not in state or "_parameters" not in state:
            return None
        found: dict[str, RawTensor | None] = {}
        self._gather(state, "", found)
        return found

    def _gather(self, state: Mapping[Any, Any], prefix: str, found: dict[str, RawTensor | None]) -> None:
        self.count()
        transient = _listed(state.get("_non_persistent_buffers_set"))
        for group in ("_parameters", "_buffers"):
            for name, value in (mapping_of(state.get(group)) or {}).items():
                if value is not None and name not in transient:
                    found[f"{prefix}{name}"] = self.tensor(value)
        for name, child in (mapping_of(state.get("_modules")) or {}).items():
            inner = mapping_of(child.state) if isinstance(child, Inert) else None
            if inner is not None:
                self._gather(inner, f"{prefix}{name}.", found)

    def tree(self, value: Any) -> Any:
        """Return nested dicts of tensors, with state_dicts for modules and None for everything else."""
        self.count()
        found: Any = self.tensor(value) or self.module(value)
        mapping = mapping_of(value)
        if found is None and mapping is not None:
            found = {name: self.tree(item) for name, item in mapping.items()}
        return found

    def count(self) -> None:
        """Count one visited entry.

        Raises:
            ValueError: There are more entries than the pickle has bytes.
        """
        self.left -= 1
        if self.left < 0:
            raise ValueError("it unfolds to more entries than its pickle has bytes")


def mapping_of(value: Any) -> Mapping[Any, Any] | None:
    """Return the items of a dict, or of an inert object that is a dict such as OrderedDict; otherwise None."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Inert):
        return None
    if value.name in _DICTS:
        return _pairs(value.arguments) | value.items
    return value.items or None


def _pairs(arguments: Sequence[Any]) -> dict[Any, Any]:
    """Return the items in the arguments of the constructor of a dict: a mapping or pairs, as Python 2 pickles them."""
    for argument in arguments:
        if isinstance(argument, dict):
            return argument
        if isinstance(argument, list | tuple) and all(isinstance(pair, list | tuple) for pair in argument):
            return {pair[0]: pair[1] for pair in argument if len(pair) == 2 and isinstance(pair[0], Key)}
    return {}


def _listed(value: Any) -> Sequence[Any]:
    """Return the members of a set, which is pickled as a list or as the arguments of a call."""
    if isinstance(value, Inert):
        value = value.arguments[0] if value.arguments else []
    return value if isinstance(value, list) else []

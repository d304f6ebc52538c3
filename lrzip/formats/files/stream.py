"""Streaming writer of safetensors: the header is written first, then the tensors one at a time in any order."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from lrzip.core.layers import TensorSpec

CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
"""Codes of safetensors by the names of torch's dtypes."""

NAMES = {code: name for name, code in CODES.items()}
"""Names of torch's dtypes by the codes of safetensors."""


class TensorStream:
    """A safetensors file that is written one tensor at a time.

    The offsets follow from the specs, so each tensor is written to its place as it arrives and memory does not grow
    with the file. Exiting the context without an error requires that every tensor was written.

    Args:
        path: Path of the file.
        specs: Every tensor of the file.
        metadata: Strings for the `__metadata__` of the header.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> None:
        self._header, self._offsets, self._size = _header(specs, metadata)
        self._missing = {spec for spec, (start, end) in self._offsets.items() if end > start}
        self._file = path.open("wb")

    def write(self, name: str, chunks: Iterable[memoryview]) -> None:
        """Write the bytes of one tensor, little-endian and contiguous."""
        start, end = self._offsets[name]
        position = len(self._header) + start
        for chunk in chunks:
            self._file.seek(position)
            self._file.write(chunk)
            position += len(chunk)
        if position != len(self._header) + end:
            raise ValueError(f"`{name}` takes {end - start} bytes, got {position - len(self._header) - start}.")
        self._missing.discard(name)

    def __enter__(self) -> Self:
        self._file.write(self._header)
        os.truncate(self._file.fileno(), len(self._header) + self._size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"{len(self._missing)} tensors were never written, the first is `{min(self._missing)}`.")


def _header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, tuple[int, int]], int]:
    document: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets: dict[str, tuple[int, int]] = {}
    end = 0
    for spec in _aligned(list(specs)):
        offsets[spec.name] = (end, end + spec.nbytes)
        end += spec.nbytes
        code = CODES.get(spec.dtype, spec.dtype.upper())
        document[spec.name] = {"dtype": code, "shape": list(spec.shape), "data_offsets": list(offsets[spec.name])}
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format requires that data starts at a multiple of 8
    return len(text).to_bytes(8, "little") + text, offsets, end


def _aligned(specs: list[TensorSpec]) -> list[TensorSpec]:
    """Return the specs in their order, or with the widest dtypes first if their order would misalign a tensor."""
    position = 0
    for spec in specs:
        if spec.numel and position % max(spec.nbytes // spec.numel, 1):
            return sorted(specs, key=lambda spec: spec.nbytes / max(spec.numel, 1), reverse=True)
        position += spec.nbytes
    return specs


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor in C order."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data

"""Tensors stored as raw bytes at known offsets of a file."""

import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.layers import TensorSpec
from lrzip.formats.files.views import View, shared_views

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.complex32, torch.complex64, torch.complex128),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    )
}
"""Dtypes whose elements are stored as raw bytes, by torch's names."""

_CHUNK = 1 << 23
REPEATED_LIMIT = 1 << 28
"""Limit in bytes of an expanded tensor (stride 0), which may be larger than its file."""


@dataclass(frozen=True)
class Block:
    """A range of bytes of a file."""

    start: int
    nbytes: int


@dataclass(frozen=True)
class RawTensor:
    """A strided tensor within a block; strides and offset are in elements."""

    block: Block
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Number of stored elements from the first to the last one used."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def repeats(self) -> bool:
        """Whether elements of the tensor share stored elements, as after `expand`."""
        return self.numel > self.span

    @property
    def is_contiguous(self) -> bool:
        """Whether elements are stored in C order."""
        expected = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return all(s == e or n == 1 for n, s, e in zip(self.shape, self.strides, expected, strict=True))

    @property
    def exceeds(self) -> bool:
        """Whether the tensor is not within its block, or has no valid shape."""
        counts = (*self.shape, *self.strides, self.offset)
        if len(self.shape) != len(self.strides) or not all(type(count) is int and count >= 0 for count in counts):
            return True
        return bool(self.numel) and (self.offset + self.span) * self.dtype.itemsize > self.block.nbytes

    def spec(self, name: str) -> TensorSpec:
        """Return the spec of the tensor."""
        return TensorSpec(name, self.shape, str(self.dtype).removeprefix("torch."), self.numel * self.dtype.itemsize)

    def check(self, path: Path, name: str) -> None:
        """Refuse a tensor that exceeds its block, or that claims far more bytes than the file has."""
        counts = (*self.shape, *self.strides, self.offset)
        if len(self.shape) != len(self.strides) or not all(type(count) is int and count >= 0 for count in counts):
            raise UnsupportedCheckpoint(f"`{path}` is damaged: `{name}` has the shape {self.shape!r}.")
        if not self.numel:
            return
        if not self.block.nbytes:
            raise UnsupportedCheckpoint(f"`{path}` does not store its weight `{name}`. Save it again with its weights.")
        beyond = (self.offset + self.span) * self.dtype.itemsize > self.block.nbytes
        if beyond or self.numel * self.dtype.itemsize > max(path.stat().st_size, REPEATED_LIMIT):
            raise UnsupportedCheckpoint(f"`{path}` is damaged: `{name}` {self.shape} exceeds the stored bytes.")

    def read(self, path: Path) -> Tensor:
        """Read the tensor."""
        if not self.numel:
            return torch.empty(self.shape, dtype=self.dtype)
        data = bytearray(self.span * self.dtype.itemsize)
        with path.open("rb") as file:
            file.seek(self._start)
            if file.readinto(data) != len(data):
                raise UnsupportedCheckpoint(f"`{path}` became shorter while it was read. Run it again.")
        return torch.frombuffer(data, dtype=self.dtype).as_strided(self.shape, self.strides)

    def chunks(self, path: Path) -> Iterator[memoryview]:
        """Yield the bytes of the tensor in C order."""
        if not self.is_contiguous:
            yield self.read(path).contiguous().reshape(-1).view(torch.uint8).numpy().data
            return
        end = self._start + self.numel * self.dtype.itemsize
        with path.open("rb") as file:
            yield from read_range(file, path, self._start, end)

    @property
    def _start(self) -> int:
        return self.block.start + self.offset * self.dtype.itemsize


def read_range(file: IO[bytes], path: Path, start: int, end: int) -> Iterator[memoryview]:
    """Yield the bytes of a range of an open file.

    Raises:
        UnsupportedCheckpoint: The file ends within the range.
    """
    for position in range(start, end, _CHUNK):
        file.seek(position)
        data = file.read(min(end - position, _CHUNK))
        if len(data) < min(end - position, _CHUNK):
            raise UnsupportedCheckpoint(f"`{path}` became shorter while it was read. Run it again.")
        yield memoryview(data)


def shared(tensors: Mapping[str, RawTensor]) -> dict[str, str]:
    """Return the reason for each tensor that shares stored elements with another one, or that repeats its own."""
    views = {
        name: View(tensor.block, tensor.dtype.itemsize, tensor.offset, tensor.shape, tensor.strides)
        for name, tensor in tensors.items()
        if tensor.numel
    }
    reasons = {name: f"shared with {other}" for name, other in shared_views(views).items()}
    return {name: "repeats fewer stored elements" for name, tensor in tensors.items() if tensor.repeats} | reasons


def members_of(path: Path) -> Mapping[str, Block]:
    """Return the blocks of the members of a zip archive without compression."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        return {member.filename: _block(file, member) for member in archive.infolist()}


def _block(file: IO[bytes], member: zipfile.ZipInfo) -> Block:
    file.seek(member.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError(f"the member {member.filename} has no header")
    return Block(member.header_offset + len(header) + sum(struct.unpack("<HH", header[26:])), member.file_size)

"""safetensors: one file, read and written one tensor at a time."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from safetensors import safe_open
from torch import Tensor

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.options import Key
from lrzip.core.stored import DenseLayer
from lrzip.formats.files.atomic import atomic_file
from lrzip.formats.files.keys import refuse_key
from lrzip.formats.files.raw import read_range
from lrzip.formats.files.stream import CODES, NAMES, TensorStream, tensor_bytes
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.networks.architecture import Architecture
from lrzip.networks.recognition import find_layers

_RESERVED = "__metadata__"


class SafetensorsFile:
    """An open safetensors file.

    The header is validated by the safetensors library; data is read with plain reads instead of a memory map, so that
    resident memory stays small.
    """

    format = "safetensors"
    key = ""
    others: Sequence[str] = ()
    dense_layers: Mapping[str, DenseLayer] | None = None
    knows_layers = False
    is_rewritable = True
    snapshot = Snapshot()

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt"):
            pass  # raises for overlaps, holes, truncation, duplicates, and shapes that do not match their bytes
        self.path = path
        self.nbytes = path.stat().st_size
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header, start = json.loads(file.read(size)), 8 + size
        self.metadata: Mapping[str, str] = header.pop("__metadata__", None) or {}
        items = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        self._starts = {name: start + item["data_offsets"][0] for name, item in items}
        self._specs = {name: _spec(name, item) for name, item in items}
        self._file = path.open("rb")

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the specs of all tensors in file order."""
        return self._specs

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason."""
        return find_layers(self.path, self._specs, architecture)

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        spec = self._specs[name]
        dtype = getattr(torch, spec.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise UnsupportedCheckpoint(f"`{name}` in `{self.path}` is {spec.dtype}, which torch cannot read.")
        if not spec.nbytes:
            return torch.empty(spec.shape, dtype=dtype)
        data = bytearray(spec.nbytes)
        self._file.seek(self._starts[name])
        if self._file.readinto(data) != spec.nbytes:
            raise UnsupportedCheckpoint(f"`{self.path}` became shorter while it was read. Run it again.")
        return torch.frombuffer(data, dtype=dtype).reshape(spec.shape)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        start = self._starts[name]
        return read_range(self._file, self.path, start, start + self._specs[name].nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


class SafetensorsWriter:
    """Writes each computed tensor as it arrives."""

    def __init__(self, stream: TensorStream) -> None:
        self._stream = stream

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one computed tensor."""
        self._stream.write(name, [tensor_bytes(tensor)])


class Safetensors:
    """Files with the suffix `.safetensors` or the header of one."""

    suffixes: Sequence[str] = (".safetensors",)
    usage: str | None = None
    is_program = False
    holds_entries = False
    holds_metadata = True
    stores_kinds = False

    def matches(self, path: Path) -> bool:
        """Return whether the suffix matches, or the file starts with a length and a JSON object."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(9)
        return path.suffix.lower() in self.suffixes or head[8:] == b"{"

    def open(self, path: Path, *, key: Key, trust: bool) -> SafetensorsFile:
        """Open a file, which contains no code to trust."""
        del trust
        refuse_key(path, key, "safetensors")
        return SafetensorsFile(path)

    def files(self, path: Path) -> Sequence[Path]:
        """Return the file itself."""
        return [path]

    @contextmanager
    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> Iterator[Writer]:
        """Write a file with the metadata of the source."""
        del drop  # safetensors holds no entries beside the tensors
        with atomic_file(destination) as temporary, stream_tensors(temporary, source, layout) as writer:
            yield writer


class Stored(Protocol):
    """Source of the bytes of tensors."""

    @property
    def path(self) -> Path:
        """Path of the file, for messages."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Strings that describe the file."""
        ...

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        ...


@contextmanager
def stream_tensors(path: Path, source: Stored, layout: Sequence[Entry]) -> Iterator[SafetensorsWriter]:
    """Write a file in place: the computed tensors as they arrive, the copied ones when the context exits."""
    for spec in (entry.spec for entry in layout):
        if spec.name == _RESERVED:
            raise UnsupportedCheckpoint(
                f"`{source.path}` has a tensor called `{_RESERVED}`, which safetensors cannot hold. Write a .pt file."
            )
        if spec.dtype not in CODES and hasattr(torch, spec.dtype):
            raise UnsupportedCheckpoint(
                f"safetensors has no dtype for `{spec.name}` of `{source.path}`, which is {spec.dtype}."
            )
    with TensorStream(path, (entry.spec for entry in layout), source.metadata) as stream:
        yield SafetensorsWriter(stream)
        for entry in layout:
            if entry.copied:
                stream.write(entry.spec.name, source.chunks(entry.origin))


def _spec(name: str, item: Mapping[str, Any]) -> TensorSpec:
    start, end = item["data_offsets"]
    return TensorSpec(name, tuple(item["shape"]), NAMES.get(item["dtype"], item["dtype"].lower()), end - start)


FORMAT = Safetensors()

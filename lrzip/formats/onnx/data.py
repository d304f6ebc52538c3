"""Bytes of the tensors of ONNX models, inside the model or in external files, one chunk at a time."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.layers import TensorSpec

_CHUNK = 1 << 23
# Large tensors are aligned to pages, so that runtimes can map them into memory.
_PAGE = 4096
_LARGE = 1 << 16
_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}


def spec_of(name: str, tensor: ir.TensorProtocol) -> TensorSpec:
    """Return the spec of a tensor without reading its data."""
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    if any(dim < 0 for dim in shape):
        raise UnsupportedCheckpoint(f"`{name}` has a negative dimension, {shape}.")
    nbytes = 0 if tensor.dtype == ir.DataType.STRING else int(tensor.nbytes)
    return TensorSpec(name, shape, _NAMES.get(tensor.dtype.name, tensor.dtype.name.lower()), nbytes)


def external_file(path: Path, tensor: ir.ExternalTensor) -> Path:
    """Return the file that holds the data of an external tensor.

    Raises:
        UnsupportedCheckpoint: The file is missing, too short, or outside of the model's folder.
    """
    location = str(tensor.location)
    folder = path.absolute().parent
    file = folder / location
    where = f"`{path}` says that `{tensor.name}` is in {location!r}"
    inside = location and "\\" not in location and ".." not in Path(location).parts
    if not inside or Path(location).is_absolute() or not file.resolve().is_relative_to(folder.resolve()):
        raise UnsupportedCheckpoint(f"{where}, which is outside of its folder. Nothing was read from there.")
    if not file.is_file():
        raise UnsupportedCheckpoint(f"{where}, which does not exist. Put it beside the model.")
    offset, nbytes = tensor.offset or 0, tensor.nbytes
    if tensor.length not in (None, nbytes):
        raise UnsupportedCheckpoint(f"{where} with {tensor.length} bytes, but its shape takes {nbytes}.")
    if offset < 0 or offset + nbytes > file.stat().st_size:
        raise UnsupportedCheckpoint(f"{where}, which is too short for it. Fetch it again.")
    return file


def chunks_of(path: Path, tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    """Yield the little-endian bytes of a tensor of the model at `path`."""
    if tensor.dtype == ir.DataType.STRING:
        raise UnsupportedCheckpoint(f"`{tensor.name}` in `{path}` holds strings, which no other format supports.")
    if not isinstance(tensor, ir.ExternalTensor):
        data = tensor.tobytes()
        if len(data) != tensor.nbytes:
            raise UnsupportedCheckpoint(f"`{path}` has {len(data)} bytes of `{tensor.name}`, not {tensor.nbytes}.")
        yield memoryview(data)
        return
    with external_file(path, tensor).open("rb") as file:
        file.seek(tensor.offset or 0)
        left = int(tensor.nbytes)
        while left:
            data = file.read(min(left, _CHUNK))
            if not data:
                raise UnsupportedCheckpoint(f"`{file.name}` became shorter while it was read. Run it again.")
            left -= len(data)
            yield memoryview(data)


class DataFile:
    """A file of external data to which tensors are appended, and whose final name contains a digest of its content.

    An old model and a new one of the same name thus never refer to the same file, unless it has the same content.

    Args:
        path: Path of the file while it is written, beside the model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._digest = hashlib.blake2b(digest_size=8)

    def append(self, spec: TensorSpec, dtype: ir.DataType, chunks: Iterator[memoryview]) -> ir.ExternalTensor:
        """Append a tensor and return the reference to it for the model."""
        if spec.nbytes >= _LARGE:
            self._write(bytes(-self._file.tell() % _PAGE))
        offset = self._file.tell()
        for chunk in chunks:
            self._write(chunk)
        return ir.ExternalTensor(
            self.path.name,
            offset,
            self._file.tell() - offset,
            dtype,
            shape=ir.Shape(spec.shape),
            name=spec.name,
            base_dir=self.path.parent,
        )

    def finish(self, model: onnx.ModelProto, stem: str, ending: str) -> None:
        """Give the file its final name, also in a model.

        Args:
            model: Model that refers to the file.
            stem: Start of the name: the name of the model's file.
            ending: End of the name, such as `.data`.
        """
        self.close()
        name = f"{stem}.{self._digest.hexdigest()}{ending}"
        for tensor in _tensors(model):
            for entry in tensor.external_data:
                if entry.key == "location" and entry.value == self.path.name:
                    entry.value = name
        self.path.replace(self.path.with_name(name))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)


def own_data(model: Path) -> set[Path]:
    """Return the files of external data that `DataFile` wrote for a model of this name, past or present."""
    name = re.compile(re.escape(model.name) + r"\.[0-9a-f]{16}[._]\w+")
    return {path for path in model.parent.iterdir() if name.fullmatch(path.name) and path.is_file()}


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield the tensors in a message and in all messages within it."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in [value] if isinstance(value, Message) else value:
            if isinstance(inner, onnx.TensorProto):
                yield inner
            else:
                yield from _tensors(inner)

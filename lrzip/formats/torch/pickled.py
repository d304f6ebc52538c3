"""Read files of torch.save without executing their pickle, whatever classes they contain."""

import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from lrzip.core.errors import UnsupportedCheckpoint, UntrustedFile
from lrzip.formats import FORMATS
from lrzip.formats.files.archive import checked_members
from lrzip.formats.files.inert import Handle, Inert, Name, read_pickle
from lrzip.formats.files.raw import DTYPES, Block, RawTensor, members_of
from lrzip.formats.torch.nesting import beside, descend, find_weights
from lrzip.formats.torch.raw import RawFile

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 3  # a magic number, the protocol's version, and a description of the machine precede the object
_STORAGES = {
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
    """

    content: Any
    blocks: Mapping[str, Block]
    left: int

    def tensor(self, value: Any) -> RawTensor | None:
        """Return the tensor that an inert object stands for, or None if it is not a tensor or parameter."""
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
        stored = _STORAGES.get(of.name)
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


class PickledFile(RawFile):
    """An open file of torch.save whose pickle is not executed.

    Attributes:
        kind: Class of the module in the file, or None for a state_dict.
        refusal: Reason why the entries beside the tensors cannot be written again.
    """

    def __init__(self, path: Path, *, key: str | None, refusal: str = "") -> None:
        pickled = read_file(path)
        content: Any = pickled.tree(pickled.content)
        if not isinstance(content, dict) and isinstance(pickled.content, Inert):
            raise UnsupportedCheckpoint(
                f"`{path}` is a pickled object of class `{pickled.content.name}`, not a module or a state_dict. "
                "Save its weights with `torch.save(model.state_dict(), path)` and compress those."
            )
        steps = find_weights(path, _outline(content), key)
        state = descend(content, steps)
        tensors = {str(name): value for name, value in state.items() if isinstance(value, RawTensor)}
        self.kind = _class_of(pickled, steps)
        self.refusal = refusal
        others = [f"the code and attributes of `{self.kind}`"] if self.kind else []
        format_ = "module" if self.kind else "state_dict"
        super().__init__(path, format_, tensors, others + beside(content, steps, tensors))
        self.key = ".".join(steps)

    def refuse_replacing(self, format_: str) -> None:
        """Refuse an output that would hold the entries beside the tensors, which would have to be loaded."""
        if self.kind is None and FORMATS[format_].holds_entries:
            raise UntrustedFile(self.refusal)


@contextmanager
def opened_pickle(path: Path) -> Iterator[IO[bytes] | None]:
    """Open a file of torch.save at the pickle of the saved object; yield None for other files."""
    with path.open("rb") as file, ExitStack() as stack:
        head = file.read(len(_LEGACY))
        if head == _LEGACY:
            mapped = stack.enter_context(_mapped(file))
            for _ in range(_LEGACY_PICKLES):
                read_pickle(mapped)
            yield mapped
            return
        members: Sequence[zipfile.ZipInfo] = ()
        if head.startswith(b"PK\x03\x04"):
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = [member for member in archive.infolist() if Path(member.filename).name == "data.pkl"]
        stored = [member for member in members if member.compress_type == zipfile.ZIP_STORED]
        yield stack.enter_context(archive.open(stored[0])) if stored else None


def read_file(path: Path) -> Pickled:
    """Read a file of torch.save, zip or legacy, as inert objects."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            with _mapped(file) as mapped:
                return _read_legacy(mapped, path.stat().st_size)
    checked_members(path)
    return read_archive(path)


def read_archive(path: Path) -> Pickled:
    """Read the pickle in a zip archive that was checked, and locate its storages."""
    members = members_of(path)
    name = next(name for name in members if name.rpartition("/")[2] == "data.pkl")
    root = name.removesuffix("data.pkl")
    with path.open("rb") as file:
        order = members.get(f"{root}byteorder", Block(0, 0))
        file.seek(order.start)
        if file.read(order.nbytes) == b"big":
            raise UnsupportedCheckpoint(f"`{path}` is big-endian, and lrzip reads little-endian files.")
        file.seek(members[name].start)
        content, _ = read_pickle(file.read(members[name].nbytes))
    folder = f"{root}data/"
    blocks = {n.removeprefix(folder): block for n, block in members.items() if n.startswith(folder)}
    return Pickled(content, blocks, members[name].nbytes)


def _mapped(file: IO[bytes]) -> Any:
    """Map a file into memory, so that a length beyond its end allocates nothing."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_legacy(file: IO[bytes], size: int) -> Pickled:
    """Read a legacy file: four pickles, a list of storages, and each storage as its length and bytes."""
    for _ in range(_LEGACY_PICKLES):
        read_pickle(file)
    start = file.tell()
    content, handles = read_pickle(file)
    left = file.tell() - start
    stored = [handle.identity for handle in handles if handle.identity[0] == "storage"]
    sizes = {str(key): _STORAGES[of.name].itemsize for _, of, key, *_ in stored if of.name in _STORAGES}
    keys, _ = read_pickle(file)
    blocks: dict[str, Block] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        block = Block(file.tell(), count * sizes[str(key)])
        if count < 0 or block.start + block.nbytes > size:
            raise ValueError("its storages exceed the file")
        blocks[str(key)] = block
        file.seek(block.start + block.nbytes)
    return Pickled(content, blocks, left)


def _class_of(pickled: Pickled, steps: Sequence[str]) -> str | None:
    """Return the class of the object at an entry, or None if it is not a module."""
    value = pickled.content
    for step in steps:
        value = (mapping_of(value) or {}).get(step)
    return str(value.name or "unknown") if pickled.module(value) is not None else None


def mapping_of(value: Any) -> Mapping[Any, Any] | None:
    """Return the items of a dict, or of an inert object that is a dict such as OrderedDict; otherwise None."""
    if isinstance(value, dict):
        return value
    is_dict = isinstance(value, Inert) and (value.items or value.name == ("collections", "OrderedDict"))
    return value.items if is_dict else None


def _listed(value: Any) -> Sequence[Any]:
    """Return the members of a set, which is pickled as a list or as the arguments of a call."""
    if isinstance(value, Inert):
        value = value.arguments[0] if value.arguments else []
    return value if isinstance(value, list) else []


def _outline(tree: Any) -> Any:
    """Return nested dicts with meta tensors, which have shapes and no data."""
    if isinstance(tree, RawTensor):
        return torch.empty(tree.shape, device="meta")
    return {name: _outline(value) for name, value in tree.items()} if isinstance(tree, dict) else tree

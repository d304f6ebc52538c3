"""Programs that torch.export.save writes (.pt2).

The weights are raw bytes beside a list of their shapes, and reading them runs nothing. Loading the program itself,
which replacing its layers takes, can run code from the file.
"""

import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from lrzip.errors import LrzipError, UnsupportedCheckpoint, UntrustedFile
from lrzip.files.archive import checked_members
from lrzip.files.atomic import atomic_file
from lrzip.formats import Checkpoint, Writer
from lrzip.formats.safetensors import tensor_bytes
from lrzip.inference import find_layers
from lrzip.layers import Keep, Layer, TensorSpec
from lrzip.modules import Architecture
from lrzip.plan import Entry
from lrzip.report import Difference

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_MODEL = r"([^/]+)/models/([^/]+)\.json"
_OLD = "serialized_exported_program.json"
_COMPILED = r"[^/]+/data/aotinductor/.*"
_LISTING_LIMIT = 1 << 29
# A tensor that repeats a few stored elements may be larger than its file, up to this.
_REPEATED_LIMIT = 1 << 28
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
    33: torch.float8_e8m0fnu,
    34: torch.uint32,
    35: torch.uint64,
}
"""Torch's dtype of each code of the format."""


@dataclass(frozen=True)
class _Stored:
    """Where a tensor is: elements of a member, strided.

    Attributes:
        member: Name in the archive.
        dtype: Of its elements.
        shape: Of the tensor.
        strides: In elements.
        offset: In elements.
        pickled: Whether the member is a pickle instead, which is not read.
        elements: How many the member holds.
    """

    member: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    pickled: bool
    elements: int

    @property
    def repeats(self) -> bool:
        """Whether elements stand for several."""
        return math.prod(self.shape) > self.elements and not self.pickled

    def spec(self, name: str) -> TensorSpec:
        """Return the tensor as others see it."""
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        return TensorSpec(name, self.shape, str(self.dtype).removeprefix("torch."), nbytes)


class ProgramFile:
    """An open .pt2 file. With trust its graph says what the weights are, else their names."""

    format = "program"
    key = ""
    metadata: Mapping[str, str] = {"format": "pt"}
    others: Sequence[str] = ("the program",)

    def __init__(self, path: Path, *, trust: bool) -> None:
        self.path = path
        self.trust = trust
        self.nbytes = path.stat().st_size
        sizes = {member.filename: member.file_size for member in checked_members(path)}
        root = _root(path, list(sizes))
        self.extra_files = [name.removeprefix(f"{root}/extra/") for name in sizes if name.startswith(f"{root}/extra/")]
        self._archive = zipfile.ZipFile(path)
        self._stored = _listing(path, self._archive, sizes, root)
        self._specs = {name: stored.spec(name) for name, stored in self._stored.items()}
        self._known = self._look() if trust else None

    def _look(self) -> Sequence[Layer | Keep]:
        from lrzip.programs import program_layers

        return program_layers(self.program(), self._specs, self._untouchable())

    def program(self) -> "ExportedProgram":
        """Load the program, which may run code from the file."""
        from lrzip.programs import load_program

        return load_program(self.path)[0]

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return all parameters and persistent buffers."""
        return self._specs

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return what each tensor is: by the graph if the file is trusted, which knows best."""
        if self._known is not None:
            return self._known
        return find_layers(self.path, self._specs, architecture, untouchable=self._untouchable())

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        stored = self._stored[name]
        if stored.pickled:
            raise UnsupportedCheckpoint(f"`{name}` in `{self.path}` is pickled, and not read for it would run code.")
        if not math.prod(stored.shape):
            return torch.empty(stored.shape, dtype=stored.dtype)
        data = bytearray(self._archive.read(stored.member))
        elements = torch.frombuffer(data, dtype=stored.dtype)
        return elements.as_strided(stored.shape, stored.strides, stored.offset)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        yield tensor_bytes(self.read(name))

    def bare(self) -> Self:
        """Return itself: there is nothing around the tensors but the program."""
        return self

    def compare(self, output: Path) -> Sequence[Difference]:
        """Run both programs on the inputs that are stored in this one, if any are."""
        from lrzip.programs import differences, load_program

        return differences(self.program(), load_program(output)[0]) if FORMAT.matches(output) else ()

    def refuse_replacing(self, format_: str) -> None:
        """Refuse to write a program without trust."""
        if format_ == self.format and not self.trust:
            raise UntrustedFile(
                f"`{self.path}` is a program, and to replace its layers it must be loaded, which can run code from the "
                "file. Pass `--trust` if you know where it came from, or write its weights alone with `-o weights.pt`."
            )

    def _untouchable(self) -> dict[str, str]:
        users: dict[str, list[str]] = {}
        for name, stored in self._stored.items():
            users.setdefault(stored.member, []).append(name)
        shared = (names for names in users.values() if len(names) > 1)
        reasons = {name: f"shared with {names[names[0] == name]}" for names in shared for name in names}
        reasons |= {name: "repeats fewer stored elements" for name, stored in self._stored.items() if stored.repeats}
        return reasons | {name: "pickled in the file" for name, stored in self._stored.items() if stored.pickled}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()


class ProgramWriter:
    """Collects computed tensors; the program is rewritten with all of them at the end."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        """Take one computed tensor."""
        self.tensors[name] = tensor


class Program:
    """Files of torch.export.save."""

    suffixes: Sequence[str] = (".pt2",)

    def matches(self, path: Path) -> bool:
        """Tell by the members of a zip."""
        if not path.is_file() or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(re.fullmatch(_MODEL, name) or name == _OLD for name in archive.namelist())

    def open(self, path: Path, *, key: str | None, trust: bool) -> ProgramFile:
        """Open a file; without `trust`, the program in it is not loaded."""
        if key:
            raise UnsupportedCheckpoint(f"`{path}` is a program and has no entries, so `--key {key}` names nothing.")
        return ProgramFile(path, trust=trust)

    @contextmanager
    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> Iterator[Writer]:
        """Write the source's program with its layers replaced, and the files stored beside it."""
        from lrzip.programs import load_program, rewrite, write_program

        del drop  # a program has no entries
        if not isinstance(source, ProgramFile):
            raise LrzipError(
                f"`{source.path}` is not a program, so `{destination}` cannot be one. Give the output another suffix."
            )
        source.refuse_replacing(source.format)
        stages = Counter(entry.origin for entry in layout if not entry.copied)
        if any(count != 2 for count in stages.values()):
            raise LrzipError(f"`{destination}` would be a program, in which lrzip puts chains of two and nothing else.")
        with atomic_file(destination) as temporary:
            writer = ProgramWriter()
            yield writer
            program, extra_files = load_program(source.path, source.extra_files)
            with temporary.open("wb") as file:
                write_program(rewrite(program, layout, writer.tensors), file, extra_files)


def _root(path: Path, members: Sequence[str]) -> str:
    """Return the folder in the archive that holds everything, after checking that there is one program in it."""
    if _OLD in members:
        raise UnsupportedCheckpoint(
            f"`{path}` is a torch.export program as torch before 2.8 saved it. Load and save it with a newer torch."
        )
    if any(re.fullmatch(_COMPILED, name) for name in members):
        raise UnsupportedCheckpoint(
            f"`{path}` holds a program compiled by AOTInductor. Compress the .pt2 that it was compiled from."
        )
    roots = [(found[1], found[2]) for name in members if (found := re.fullmatch(_MODEL, name))]
    if len(roots) != 1 or roots[0][1] != "model":
        names = ", ".join(name for _, name in roots)
        raise UnsupportedCheckpoint(
            f"`{path}` holds the programs {names}; lrzip reads a single one named model, as torch.export.save writes."
        )
    return roots[0][0]


def _listing(path: Path, archive: zipfile.ZipFile, sizes: Mapping[str, int], root: str) -> dict[str, _Stored]:
    """Return where each tensor is, by name, after checking that it is there."""
    folder = f"{root}/data/weights/"
    listing = f"{folder}model_weights_config.json"
    if listing not in sizes:
        raise UnsupportedCheckpoint(f"`{path}` does not store its weights. Save the program again with them.")
    if sizes[listing] > _LISTING_LIMIT:
        raise UnsupportedCheckpoint(f"`{path}` lists its weights in {sizes[listing]} bytes, more than any file needs.")
    if f"{root}/byteorder" in sizes and archive.read(f"{root}/byteorder") != b"little":
        raise UnsupportedCheckpoint(
            f"`{path}` was written on a big-endian machine, and lrzip reads little-endian files."
        )
    config = json.loads(archive.read(listing))["config"]
    return {name: _stored(path, name, item, sizes, folder) for name, item in config.items()}


def _stored(path: Path, name: str, item: Mapping[str, Any], sizes: Mapping[str, int], folder: str) -> _Stored:
    member, meta = folder + _text(item["path_name"]), item["tensor_meta"]
    if "/" in item["path_name"] or member not in sizes:
        raise UnsupportedCheckpoint(f"`{path}` puts `{name}` into {item['path_name']!r}, which is not a member of it.")
    dtype = _DTYPES[meta["dtype"]]
    shape, strides = _counts(meta["sizes"]), _counts(meta["strides"])
    (offset,) = _counts([meta["storage_offset"]])
    stored = _Stored(member, dtype, shape, strides, offset, bool(item["use_pickle"]), sizes[member] // dtype.itemsize)
    nbytes = stored.spec(name).nbytes
    if stored.pickled or not nbytes:
        return stored
    if not sizes[member]:
        raise UnsupportedCheckpoint(f"`{path}` does not store its weight `{name}`. Save the program again with it.")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= stored.elements or nbytes > max(sum(sizes.values()), _REPEATED_LIMIT):
        raise UnsupportedCheckpoint(f"`{path}` is damaged: `{name}` {shape} goes beyond the bytes that are stored.")
    return stored


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name is {value!r}")
    return value


def _counts(items: Sequence[Mapping[str, int]]) -> tuple[int, ...]:
    numbers = tuple(item["as_int"] for item in items)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"sizes are {numbers}")
    return numbers


FORMAT = Program()

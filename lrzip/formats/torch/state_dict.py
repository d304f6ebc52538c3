"""What torch.save writes: state_dicts, bare or inside a training checkpoint, zip or legacy.

Legacy files come out as zip files: the legacy format puts memory addresses into the file, so that no two are the same.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from lrzip.core.errors import UnsupportedCheckpoint, UntrustedFile
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.plan import Entry
from lrzip.formats.files.archive import checked_members
from lrzip.formats.files.atomic import atomic_file
from lrzip.formats.files.stream import tensor_bytes
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.formats.torch.nesting import beside, descend, find_weights, rebuilt, refilled
from lrzip.formats.torch.pickled import PickledFile
from lrzip.networks.architecture import Architecture
from lrzip.networks.inference import find_layers

_PICKLE_LIMIT = 1 << 29


class StateDictFile:
    """An open file of torch.save. Zip files are mapped, so only the tensors that are touched are read."""

    format = "state_dict"
    metadata: Mapping[str, str] = {"format": "pt"}
    chain_kinds: Mapping[str, str] | None = None
    knows_layers = False

    def __init__(self, path: Path, *, key: str | None, trust: bool) -> None:
        self.path = path
        self.nbytes = path.stat().st_size
        zipped = _is_zip(path)
        if zipped:
            _check_zip(path)
        self.content = _load(path, mmap=zipped, trust=trust)
        self.steps = find_weights(path, self.content, key)
        self.key = ".".join(self.steps)
        self.state: Mapping[str, Any] = descend(self.content, self.steps)
        self._tensors = {name: value for name, value in self.state.items() if isinstance(value, Tensor)}
        self._specs = {name: _spec(name, tensor) for name, tensor in self._tensors.items()}

    @property
    def others(self) -> Sequence[str]:
        """Names of the entries beside the weights, on every level of the nesting."""
        return beside(self.content, self.steps, self._tensors)

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return all tensors of the state_dict in its order."""
        return self._specs

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return what each tensor is. A nested state_dict comes from a trainer, whose `model.` is a wrapper."""
        reasons = _untouchable(self._tensors)
        return find_layers(self.path, self._specs, architecture, trainer=bool(self.steps), untouchable=reasons)

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._tensors[name].detach()

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        yield tensor_bytes(self._tensors[name])

    def bare(self) -> "StateDictFile":
        """Return the state_dict as if it were the whole file."""
        view = copy.copy(self)
        view.content, view.steps, view.key = self.state, (), ""
        return view

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass  # the mapping goes with the last tensor that uses it


class StateDictWriter:
    """Collects computed tensors; torch.save writes them all at the end."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        """Take one computed tensor."""
        self.tensors[name] = tensor


class StateDict:
    """Files of torch.save."""

    suffixes: Sequence[str] = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
    usage: str | None = None
    is_program = False

    def matches(self, path: Path) -> bool:
        """Tell by a zip that holds a pickle, or by the first bytes of a pickle."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02"))

    def open(self, path: Path, *, key: str | None, trust: bool) -> StateDictFile | PickledFile:
        """Open a file; without `trust`, only with torch's restricted unpickler, or to read its tensors alone."""
        try:
            return StateDictFile(path, key=key, trust=trust)
        except UntrustedFile as error:
            return PickledFile(path, key=key, refusal=str(error))

    def files(self, path: Path) -> Sequence[Path]:
        """Return the one file."""
        return [path]

    @contextmanager
    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> Iterator[Writer]:
        """Write the source's nesting and other entries again, or a bare state_dict of another format's tensors."""
        with atomic_file(destination) as temporary:
            writer = StateDictWriter()
            yield writer
            if isinstance(source, StateDictFile):
                content = _rebuilt(source, layout, writer.tensors, drop)
            else:
                tensors = {e.spec.name: source.read(e.origin) for e in layout if e.copied} | writer.tensors
                content = {e.spec.name: tensors[e.spec.name] for e in layout}
            with temporary.open("wb") as file:
                save_to(file, content)


def save_to(file: Any, content: object) -> None:
    """Write what torch.save writes to an open file: by name, torch would put the name into it."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if error.__context__ is None:
            raise
        raise error.__context__ from error  # torch hides a full disk or Ctrl-C behind a complaint about file positions


def _rebuilt(
    source: StateDictFile, layout: Sequence[Entry], computed: Mapping[str, Tensor], drop: Sequence[str]
) -> Any:
    """Return the source's content with the tensors of a layout, all else as it was."""
    replacements: dict[str, list[tuple[str, Any]]] = {name: [] for name in source.tensors()}
    for entry in layout:
        old = source.state[entry.origin]
        replacements[entry.origin].append(
            (entry.spec.name, old if entry.copied else _alike(old, computed[entry.spec.name]))
        )
    items = [pair for name, value in source.state.items() for pair in replacements.get(name, [(name, value)])]
    return rebuilt(source.content, source.steps, refilled(copy.copy(source.state), items), drop)


def _alike(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_zip(path: Path) -> None:
    """Refuse archives that torch.save never writes and that unpack to more than they are."""
    pickles = [member for member in checked_members(path) if Path(member.filename).name == "data.pkl"]
    if not pickles:
        raise UnsupportedCheckpoint(f"`{path}` is a zip archive without a pickle, so torch.save did not write it.")
    for member in pickles:
        if member.file_size > _PICKLE_LIMIT:
            raise UnsupportedCheckpoint(
                f"`{path}` has a pickle of {member.file_size} bytes, more than any checkpoint needs."
            )


def _load(path: Path, *, mmap: bool, trust: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=not trust)
    except Exception as error:
        found = re.search(
            r"Unsupported (?:global|class|type|operand).*?(?:GLOBAL )?([A-Za-z_][\w.]*\.[\w.]+)", str(error)
        )
        if trust or not found:
            raise
        raise UntrustedFile(
            f"`{path}` holds pickled Python objects, not only tensors: `{found[1]}`. "
            "Pass `--trust` if you know where it came from: it allows the file to run code."
        ) from error


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(
        name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.numel() * tensor.element_size()
    )


def _untouchable(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the tensors whose storage says that they are not plain weights of their own."""
    users: dict[int, list[str]] = {}
    reasons: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.is_quantized:
            reasons[name] = "quantized"
        elif tensor.layout != torch.strided:
            reasons[name] = f"sparse, {tensor.layout}"
        elif tensor.numel():
            users.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    for names in users.values():
        for name in names:
            others = [other for other in names if other != name]
            if others:
                reasons[name] = f"shared with {others[0]}"
    return reasons


FORMAT = StateDict()

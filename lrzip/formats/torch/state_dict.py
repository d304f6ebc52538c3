"""State_dicts saved by torch.save: bare or inside a training checkpoint, as zip or legacy files.

Outputs are always zip files. The legacy format stores memory addresses, so its files are not reproducible.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from lrzip.core.errors import UnsupportedCheckpoint, UntrustedFile, one_line
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.options import Key
from lrzip.core.stored import DenseLayer
from lrzip.formats import FORMATS
from lrzip.formats.files.archive import checked_members
from lrzip.formats.files.atomic import atomic_file
from lrzip.formats.files.raw import REPEATED_LIMIT
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.protocols import Checkpoint, Format, Writer
from lrzip.formats.torch.collecting import CollectingWriter
from lrzip.formats.torch.entries import Weights, find_weights
from lrzip.formats.torch.guarded import check_size, load_guarded
from lrzip.formats.torch.loaded import bytes_of, irreplaceable, packed, separate, spec_of
from lrzip.formats.torch.nesting import beside, descend, merged, rebuilt, refilled
from lrzip.formats.torch.pickled_file import PickledFile
from lrzip.networks.architecture import Architecture
from lrzip.networks.build import importable
from lrzip.networks.recognition import find_layers

_PICKLE_LIMIT = 1 << 29
_MESSAGE_LIMIT = 1000


class StateDictFile:
    """An open file of torch.save. Zip files are mapped into memory, so only the tensors that are used are read."""

    format = "state_dict"
    metadata: Mapping[str, str] = {"format": "pt"}
    dense_layers: Mapping[str, DenseLayer] | None = None
    knows_layers = False
    is_rewritable = True
    snapshot = Snapshot()

    def __init__(self, path: Path, *, key: Key, trust: bool) -> None:
        self.path = path
        self.nbytes = path.stat().st_size
        zipped = _is_zip(path)
        if zipped:
            _check_zip(path)
        self.content = _load(path, mmap=zipped, trust=trust)
        self.weights = find_weights(path, self.content, key)
        self.key, self.rivals = self.weights.key, self.weights.rivals
        self.state = merged(self.content, self.weights.entries)
        self._tensors = {
            name: value for name, value in self.state.items() if isinstance(name, str) and isinstance(value, Tensor)
        }
        self._specs = {name: spec_of(name, tensor) for name, tensor in self._tensors.items()}
        for spec in self._specs.values():
            check_size(path, spec.name, spec.nbytes, max(self.nbytes, REPEATED_LIMIT))

    @property
    def others(self) -> Sequence[str]:
        """Dotted names of the entries beside the tensors, on every level of the nesting."""
        own = [str(name) for name in self.state if name not in self._tensors]
        return own + beside(self.content, self.weights.entries.values())

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the specs of all tensors of the state_dict, in its order."""
        return self._specs

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason.

        A nested state_dict was written by a trainer, so the prefix `model.` is an attribute of the trainer.
        """
        reasons = self.untouchable()
        found = find_layers(self.path, self._specs, architecture, trainer=bool(self.key), untouchable=reasons)
        return [*found, *packed(self.state, self._tensors)]

    def untouchable(self) -> Mapping[str, str]:
        """Return the tensors that must not be replaced, with the reason."""
        return irreplaceable(self._tensors)

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        self.snapshot.refuse_changes()  # a part of a mapping behind the end of its file ends the process
        return self._tensors[name].detach().clone()

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        yield bytes_of(self.path, name, self.read(name))

    def states(self) -> Mapping[str, Any]:
        """Return the entries of the state_dict that are no tensors, by name."""
        return {str(name): value for name, value in self.state.items() if name not in self._tensors}

    def bare(self) -> "StateDictFile":
        """Return a view of the state_dict without the entries around it."""
        view = copy.copy(self)
        view.content, view.weights, view.key = self.state, Weights({"": ()}), ""
        return view

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass  # the file is unmapped with the last tensor that uses it


class StateDict:
    """Files of torch.save that hold a state_dict."""

    suffixes: Sequence[str] = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
    usage: str | None = None
    is_program = False
    holds_entries = True
    holds_metadata = False
    stores_kinds = False

    def matches(self, path: Path) -> bool:
        """Return whether the file starts like a zip archive or a pickle."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02"))

    def open(self, path: Path, *, key: Key, trust: bool) -> Checkpoint:
        """Open a file.

        Without `trust` it is loaded by torch's restricted unpickler, or, if that refuses, only its tensors are read.
        With `trust`, an entry that is a module is rewritten as one.
        """
        if trust and _is_module(path, key):
            module: Format = FORMATS["module"]
            return module.open(path, key=key, trust=True)
        try:
            return StateDictFile(path, key=key, trust=trust)
        except UntrustedFile as error:
            return PickledFile(path, key=key, refusal=str(error))

    def files(self, path: Path) -> Sequence[Path]:
        """Return the file itself."""
        return [path]

    @contextmanager
    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> Iterator[Writer]:
        """Write the nesting and other entries of a source in this format, or a bare state_dict for other sources."""
        with atomic_file(destination) as temporary:
            writer = CollectingWriter()
            yield writer
            if isinstance(source, StateDictFile):
                content = _rebuilt(source, layout, writer.tensors, drop)
            else:
                tensors = {e.spec.name: source.read(e.origin) for e in layout if e.copied} | writer.tensors
                content = {e.spec.name: tensors[e.spec.name] for e in layout}
            source.snapshot.refuse_changes()
            with temporary.open("wb") as file:
                save_to(file, content, source.path)


def save_to(file: Any, content: object, source: Path) -> None:
    """Save an object to an open file.

    Given a path instead, torch would store the name of the file in it, and outputs would depend on their names.
    """
    try:
        _save(file, content)
    except (TypeError, AttributeError) as error:  # objects that a damaged pickle put in the place of others
        raise UnsupportedCheckpoint(f"An entry of `{source}` cannot be saved again: {one_line(error)}.") from error


def _save(file: Any, content: object) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if error.__context__ is None:
            raise
        # torch replaces the error of a full disk, or KeyboardInterrupt, by one about file positions.
        raise error.__context__ from error


def _rebuilt(
    source: StateDictFile, layout: Sequence[Entry], computed: Mapping[str, Tensor], drop: Sequence[str]
) -> Any:
    """Return the content of the source with the tensors of a layout and all other entries unchanged."""
    replacements: dict[str, list[tuple[str, Any]]] = {name: [] for name in source.tensors()}
    shared = source.untouchable()
    for entry in layout:
        old = source.state[entry.origin]
        kept = old if entry.origin in shared else separate(old)
        replacements[entry.origin].append(
            (entry.spec.name, kept if entry.copied else _alike(old, computed[entry.spec.name]))
        )
    content = source.content
    for prefix, steps in source.weights.entries.items():
        own = descend(source.content, steps)
        items: list[tuple[Any, Any]] = []
        for name, value in own.items():
            found = replacements.get(f"{prefix}{name}") if isinstance(name, str) else None
            items += [(name, value)] if found is None else [(new.removeprefix(prefix), tensor) for new, tensor in found]
        content = rebuilt(content, steps, refilled(copy.copy(own), items), drop)
    return content


def _alike(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_zip(path: Path) -> None:
    """Refuse archives that torch.save never writes, and pickles of excessive size."""
    pickles = [member for member in checked_members(path) if Path(member.filename).name == "data.pkl"]
    if not pickles:
        raise UnsupportedCheckpoint(f"`{path}` is a zip archive without a pickle, so torch.save did not write it.")
    for member in pickles:
        if member.file_size > _PICKLE_LIMIT:
            raise UnsupportedCheckpoint(
                f"`{path}` has a pickle of {member.file_size} bytes, more than any checkpoint needs."
            )


def _is_module(path: Path, key: Key) -> bool:
    """Return whether the entry that holds the weights is a module, without executing anything."""
    try:
        return PickledFile(path, key=key).kind is not None
    except Exception:
        return False  # only loading it shows what it is


def _load(path: Path, *, mmap: bool, trust: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the deprecated types of old and quantized tensors
            if not trust:
                return load_guarded(path, mmap=mmap)
            with importable(Path.cwd()):
                return torch.load(path, map_location="cpu", mmap=mmap, weights_only=False)
    except Exception as error:
        found = re.search(
            r"Unsupported (?:global|class|type|operand).*?(?:GLOBAL )?([A-Za-z_][\w.]*\.[\w.]+)",
            str(error)[:_MESSAGE_LIMIT],  # it quotes names of the file
        )
        if trust or not found:
            raise
        raise UntrustedFile(
            f"`{path}` holds pickled Python objects, not only tensors: `{found[1]}`. "
            "Write the weights alone with `output=NAME.safetensors`, or pass `trust=True`, which allows the file to "
            "execute code, if you know where it came from."
        ) from error


FORMAT = StateDict()

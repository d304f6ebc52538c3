"""Folders of safetensors files: shards with `model.safetensors.index.json`, or a single `model.safetensors`."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.stored import DenseLayer
from lrzip.formats.files.atomic import atomic_folder
from lrzip.formats.files.keys import refuse_key
from lrzip.formats.files.readable import readable
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.formats.safetensors.file import SafetensorsFile, stream_tensors
from lrzip.networks.architecture import Architecture
from lrzip.networks.recognition import find_layers
from lrzip.networks.weights import is_parameter

_INDEX = "*.safetensors.index.json"


class ShardedFolder:
    """An open folder; each tensor is read from its shard."""

    format = "sharded-safetensors"
    key = ""
    metadata: Mapping[str, str] = {}
    others: Sequence[str] = ()
    dense_layers: Mapping[str, DenseLayer] | None = None
    knows_layers = False
    is_rewritable = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index_path = next(path.glob(_INDEX), None)
        self.index = _read_index(self.index_path) if self.index_path else None
        names = dict.fromkeys(self.index["weight_map"].values()) if self.index else [_single(path)]
        with ExitStack() as stack:
            self.shards = {name: stack.enter_context(_open_shard(path, name)) for name in names}
            self._shard_of = self._located()
            self._check_index(self.index["weight_map"] if self.index else {})
            self._stack = stack.pop_all()
        self.nbytes = sum(shard.nbytes for shard in self.shards.values())

    def _located(self) -> dict[str, SafetensorsFile]:
        return {tensor: shard for shard in self.shards.values() for tensor in shard.tensors()}

    def rename(self, names: Mapping[str, str]) -> None:
        """Present tensors under other names.

        Args:
            names: New names by the names in the files; all other tensors keep theirs.
        """
        for shard in self.shards.values():
            shard.rename(names)
        self._shard_of = self._located()

    def _check_index(self, weight_map: Mapping[str, str]) -> None:
        """Check that every tensor of the index is in its shard, and in no other."""
        for tensor, name in weight_map.items():
            if tensor not in self.shards[name].tensors():
                raise UnsupportedCheckpoint(
                    f"`{self.index_path}` says that `{tensor}` is in `{name}`, which has no such tensor."
                )
        count = sum(len(shard.tensors()) for shard in self.shards.values())
        if count > len(self._shard_of):
            raise UnsupportedCheckpoint(
                f"`{self.path}` has {count - len(self._shard_of)} tensors in more than one shard."
            )

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the specs of all tensors, shard by shard."""
        return {tensor: shard.tensors()[tensor] for tensor, shard in self._shard_of.items()}

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason."""
        return find_layers(self.path, self.tensors(), architecture)

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        return self._shard_of[name].read(name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        return self._shard_of[name].chunks(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


class ShardedWriter:
    """Writes each computed tensor to the shard of the tensor that it replaces."""

    def __init__(self, writers: Mapping[str, Writer]) -> None:
        self._writers = writers

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one computed tensor."""
        self._writers[name].put(name, tensor)


class Sharded:
    """Folders of safetensors files, whose other files are copied."""

    suffixes: Sequence[str] = ()
    usage: str | None = None
    is_program = False
    holds_entries = False
    holds_metadata = True
    stores_kinds = False

    def matches(self, path: Path) -> bool:
        """Return whether the path is a folder."""
        return path.is_dir()

    def open(self, path: Path, *, key: str | None, trust: bool) -> ShardedFolder:
        """Open a folder; safetensors contains no code to trust."""
        del trust
        refuse_key(path, key, "safetensors")
        return ShardedFolder(path)

    def files(self, path: Path) -> Sequence[Path]:
        """Return the files that hold the tensors of a folder."""
        return weight_files(path)

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Write a folder with copies of all other files of the source."""
        del drop  # safetensors holds no entries beside the tensors
        if not isinstance(source, ShardedFolder):
            raise LrzipError(f"`{source.path}` is one file, so `{destination}` cannot be a folder. Give it a suffix.")
        return write_folder(destination, source, layout)


def weight_files(folder: Path) -> Sequence[Path]:
    """Return the safetensors files of a folder."""
    return sorted(folder.glob("*.safetensors"))


@contextmanager
def write_folder(
    destination: Path, source: ShardedFolder, layout: Sequence[Entry], *, texts: Mapping[str, str] | None = None
) -> Iterator[ShardedWriter]:
    """Write a folder with one shard for each shard of the source, its index, and copies of all other files.

    Args:
        destination: Path of the folder; it appears when the context exits without an error.
        source: Folder that copied tensors and files come from.
        layout: Every tensor of the output; `origin` is the name that the source presents, `spec.name` the one written.
        texts: Contents of files that replace the source's copies, by file name; written last.
    """
    with atomic_folder(destination) as temporary, ExitStack() as stack:
        writers: dict[str, Writer] = {}
        for name, shard in source.shards.items():
            entries = [entry for entry in layout if entry.origin in shard.tensors()]
            writer = stack.enter_context(stream_tensors(temporary / name, shard, entries))
            writers |= {entry.spec.name: writer for entry in entries}
        yield ShardedWriter(writers)
        _copy_others(source, temporary)
        if source.index_path and source.index:
            index = json.dumps(_rewritten_index(source, source.index, layout), indent=2) + "\n"
            (temporary / source.index_path.name).write_text(index, encoding="utf-8")
        for name, text in (texts or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")


def _read_index(path: Path) -> dict[str, Any]:
    with readable(path):
        index = json.loads(path.read_text(encoding="utf-8"))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedCheckpoint(f"`{path}` has no `weight_map`, so it is not an index of shards.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise UnsupportedCheckpoint(
                f"`{path}` puts `{tensor}` into {name!r}, which is not a file of its own folder."
            )
    return dict(index)


def _single(path: Path) -> str:
    names = [file.name for file in weight_files(path)]
    if len(names) == 1:
        return names[0]
    if not names:
        raise UnsupportedCheckpoint(
            f"The folder `{path}` holds no safetensors weights. Name the checkpoint file itself."
        )
    raise UnsupportedCheckpoint(
        f"The folder `{path}` holds {len(names)} safetensors files and no index. Name one of them."
    )


def _open_shard(folder: Path, name: str) -> SafetensorsFile:
    path = folder / name
    if not path.is_file():
        raise UnsupportedCheckpoint(f"`{folder}` has no `{name}`, which its index names. Fetch the missing shard.")
    with readable(path):
        return SafetensorsFile(path)


def _copy_others(source: ShardedFolder, folder: Path) -> None:
    for path in source.path.iterdir():
        if path.is_dir() and path.name != ".git":
            shutil.copytree(path, folder / path.name)
        elif path.is_file() and path.name not in source.shards and path != source.index_path:
            shutil.copy2(path, folder / path.name)


def _rewritten_index(source: ShardedFolder, index: Mapping[str, Any], layout: Sequence[Entry]) -> dict[str, Any]:
    shard_of = {tensor: name for name, shard in source.shards.items() for tensor in shard.tensors()}
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = sum(entry.spec.nbytes for entry in layout)
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(entry.spec.numel for entry in layout if is_parameter(entry.spec))
    return {**index, "metadata": metadata, "weight_map": {e.spec.name: shard_of[e.origin] for e in layout}}


FORMAT = Sharded()

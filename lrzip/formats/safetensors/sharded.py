"""Folders of weights: shards with `model.safetensors.index.json`, or a single `model.safetensors`.

Folders with files of torch.save, such as `pytorch_model.bin`, are read too; outputs hold safetensors.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.options import Key
from lrzip.core.stored import DenseLayer
from lrzip.formats.capabilities import Restricted
from lrzip.formats.files.atomic import atomic_folder
from lrzip.formats.files.keys import refuse_key
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.formats.safetensors.companions import all_files, copy_files, left_out, other_files
from lrzip.formats.safetensors.file import stream_tensors
from lrzip.formats.safetensors.index import Index
from lrzip.formats.safetensors.selection import WeightFiles, find_weights, output_name
from lrzip.networks.architecture import Architecture
from lrzip.networks.recognition import find_layers


class Shard:
    """An open file of a folder, which presents some of its tensors under other names."""

    def __init__(self, file: Checkpoint) -> None:
        self.file, self.path = file, file.path
        self.metadata: Mapping[str, str] = file.metadata
        self._stored = {name: name for name in file.tensors()}

    def rename(self, names: Mapping[str, str]) -> None:
        """Present tensors under other names.

        Args:
            names: New names by the names in the file; all other tensors keep theirs.
        """
        self._stored = {names.get(name, name): stored for name, stored in self._stored.items()}

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the specs of all tensors."""
        specs = self.file.tensors()
        return {name: specs[stored].renamed(name) for name, stored in self._stored.items()}

    def untouchable(self) -> Mapping[str, str]:
        """Return the tensors that must not be replaced, with the reason."""
        found = self.file.untouchable() if isinstance(self.file, Restricted) else {}
        return {name: found[stored] for name, stored in self._stored.items() if stored in found}

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        return self.file.read(self._stored[name])

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        return self.file.chunks(self._stored[name])


class ShardedFolder:
    """An open folder; each tensor is read from its shard."""

    format = "sharded-safetensors"
    key = ""
    metadata: Mapping[str, str] = {}
    dense_layers: Mapping[str, DenseLayer] | None = None
    knows_layers = False
    is_rewritable = True
    snapshot = Snapshot()

    def __init__(self, path: Path, *, trust: bool = False, names: Sequence[str] = ()) -> None:
        self.path = path
        weights = WeightFiles(names) if names else find_weights(path)
        self.index = weights.index
        with ExitStack() as stack:
            files = {name: stack.enter_context(_open_file(path, name, trust=trust)) for name in weights.names}
            self.shards = {name: Shard(file) for name, file in files.items()}
            self._shard_of = self._located()
            if self.index:
                self._check_index(self.index)
            self._stack = stack.pop_all()
        self.others = [name for file in files.values() for name in file.others]
        used = {*files, *([self.index.path.name] if self.index else [])}
        self.files = other_files(path, used)
        self._weight_nbytes = sum(file.nbytes for file in files.values())
        self.nbytes = sum(file.stat().st_size for file in all_files(path))

    def _located(self) -> dict[str, Shard]:
        return {tensor: shard for shard in self.shards.values() for tensor in shard.tensors()}

    def rename(self, names: Mapping[str, str]) -> None:
        """Present tensors under other names.

        Args:
            names: New names by the names in the files; all other tensors keep theirs.
        """
        for shard in self.shards.values():
            shard.rename(names)
        self._shard_of = self._located()

    def _check_index(self, index: Index) -> None:
        """Check that every tensor of the index is in its shard, and in no other."""
        for tensor, name in index.weight_map.items():
            if tensor not in self.shards[name].tensors():
                raise UnsupportedCheckpoint(
                    f"`{index.path}` says that `{tensor}` is in `{name}`, which has no such tensor."
                )
        count = sum(len(shard.tensors()) for shard in self.shards.values())
        if count > len(self._shard_of):
            raise UnsupportedCheckpoint(
                f"`{self.path}` has {count - len(self._shard_of)} tensors in more than one shard."
            )

    def left_out(self) -> Mapping[str, str]:
        """Return the files beside the weights that do not fit other weights, with the reason."""
        return left_out(self.path, self.files, self.tensors().values(), self._weight_nbytes)

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the specs of all tensors, shard by shard."""
        return {name: spec for shard in self.shards.values() for name, spec in shard.tensors().items()}

    def untouchable(self) -> Mapping[str, str]:
        """Return the tensors that must not be replaced, with the reason."""
        return {name: reason for shard in self.shards.values() for name, reason in shard.untouchable().items()}

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason."""
        return find_layers(self.path, self.tensors(), architecture, untouchable=self.untouchable())

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

    def open(self, path: Path, *, key: Key, trust: bool) -> ShardedFolder:
        """Open a folder; safetensors contains no code to trust, but files of torch.save may."""
        refuse_key(path, key, "safetensors")
        return ShardedFolder(path, trust=trust)

    def files(self, path: Path) -> Sequence[Path]:
        """Return all files of a folder."""
        return all_files(path)

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Write a folder with copies of the other files of the source, except those in `drop`."""
        if not isinstance(source, ShardedFolder):
            raise LrzipError(f"`{source.path}` is one file, so `{destination}` cannot be a folder. Give it a suffix.")
        return write_folder(destination, source, layout, drop=drop)


@contextmanager
def write_folder(
    destination: Path,
    source: ShardedFolder,
    layout: Sequence[Entry],
    *,
    drop: Collection[str],
    texts: Mapping[str, str] | None = None,
) -> Iterator[ShardedWriter]:
    """Write a folder with one shard for each shard of the source, its index, and copies of the other files.

    Args:
        destination: Path of the folder; it appears when the context exits without an error.
        source: Folder that copied tensors and files come from.
        layout: Every tensor of the output; `origin` is the name that the source presents, `spec.name` the one written.
        drop: Files of the source that are not copied.
        texts: Contents of files that replace the source's copies, by file name; written last.
    """
    names: dict[str, str] = {}
    with atomic_folder(destination) as temporary, ExitStack() as stack:
        writers: dict[str, Writer] = {}
        for source_name, shard in source.shards.items():
            name, tensors = output_name(source_name), shard.tensors()
            entries = [entry for entry in layout if entry.origin in tensors]
            writer = stack.enter_context(stream_tensors(temporary / name, shard, entries))
            writers |= {entry.spec.name: writer for entry in entries}
            names |= {entry.spec.name: name for entry in entries}
        yield ShardedWriter(writers)
        copy_files(source.path, temporary, (name for name in source.files if name not in drop))
        index = source.index
        own = {output_name(index.path.name): index.rewritten(layout, names)} if index else {}
        for name, text in {**own, **(texts or {})}.items():
            (temporary / name).unlink(missing_ok=True)  # a link would be followed
            (temporary / name).write_text(text, encoding="utf-8")


def _open_file(folder: Path, name: str, *, trust: bool) -> Checkpoint:
    path = folder / name
    if not path.is_file():
        raise UnsupportedCheckpoint(f"`{folder}` has no `{name}`, which its index names. Fetch the missing shard.")
    return open_checkpoint(path, trust=trust)


FORMAT = Sharded()

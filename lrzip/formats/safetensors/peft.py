"""Folders of PEFT: `adapter_config.json` beside `adapter_model.safetensors`, as `PeftModel` loads them."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from lrzip.core.errors import LrzipError
from lrzip.core.layout import Entry
from lrzip.formats.files.keys import refuse_key
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.formats.safetensors.adapter_config import ADAPTER_CONFIG, AdapterConfig
from lrzip.formats.safetensors.companions import all_files
from lrzip.formats.safetensors.sharded import ShardedFolder, write_folder
from lrzip.networks.adapters import find_pairs

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


class PeftFolder(ShardedFolder):
    """An open folder with the configuration of its adapter."""

    format = "peft"

    def __init__(self, path: Path, *, trust: bool = False) -> None:
        self.config = AdapterConfig.read(path)
        super().__init__(path, trust=trust, names=[_weights_of(path)])

    def obstacle(self, module: str, rank: int) -> str | None:
        """Return why the pair of a module cannot get another rank, or None."""
        return self.config.obstacle(module, rank)

    def scale(self, module: str) -> float:
        """Return the factor of the product of a module."""
        return self.config.scale(module)


class Peft:
    """Folders of PEFT, whose other files are copied."""

    suffixes: Sequence[str] = ()
    usage: str | None = None
    is_program = False
    holds_entries = False
    holds_metadata = True
    stores_kinds = False

    def matches(self, path: Path) -> bool:
        """Return whether a folder holds an adapter and its configuration."""
        return (path / ADAPTER_CONFIG).is_file() and bool(_weights_of(path))

    def open(self, path: Path, *, key: str | None, trust: bool) -> PeftFolder:
        """Open a folder; safetensors contains no code to trust, but files of torch.save may."""
        refuse_key(path, key, "safetensors")
        return PeftFolder(path, trust=trust)

    def files(self, path: Path) -> Sequence[Path]:
        """Return all files of a folder."""
        return all_files(path)

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Write a folder whose configuration states the ranks of its factors."""
        if not isinstance(source, PeftFolder):
            raise LrzipError(f"`{source.path}` is no folder of an adapter, so `{destination}` cannot be one.")
        before, _ = find_pairs(source.tensors())
        after, _ = find_pairs({entry.spec.name: entry.spec for entry in layout})
        ranks = {pair.module: pair.rank for pair in after.values()}
        if ranks == {pair.module: pair.rank for pair in before.values()}:
            return write_folder(destination, source, layout, drop=drop)
        text = json.dumps(source.config.resized(ranks), indent=2, ensure_ascii=False) + "\n"
        return write_folder(destination, source, layout, drop=drop, texts={ADAPTER_CONFIG: text})


def _weights_of(folder: Path) -> str:
    """Return the name of the file that holds the adapter, or "" if there is none."""
    return next((name for name in _WEIGHTS if (folder / name).is_file()), "")


FORMAT = Peft()

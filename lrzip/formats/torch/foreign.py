"""Files that lrzip does not read, recognized by their bytes so that messages can name their kind."""

import pickletools
import re
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, NoReturn

from lrzip.core.errors import UnsupportedCheckpoint, as_line
from lrzip.core.layout import Entry
from lrzip.core.options import Key
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.formats.torch.saved import opened_pickle

_LONGEST_HEADER = 100_000_000  # limit of a safetensors header, as in the safetensors library
_STATE_DICT = "Save its weights with `torch.save(model.state_dict(), path)` and compress those."
_MAGIC = {
    rb"version https://git-lfs": "a Git-LFS pointer, not the file itself. Fetch it with `git lfs pull`",
    rb"LRZI": "an archive of the other lrzip, Long Range ZIP. Unpack it with that program",
    rb"\s*(?i:<!doctype html|<html|<\?xml)": "a web page, saved in place of the file. Download the file itself",
    rb"\x89HDF\r\n": "an HDF5 file, as Keras writes. lrzip reads PyTorch's formats",
    rb"GGUF": "a GGUF file of llama.cpp. Compress the checkpoint that it was made from",
    rb"\x1f\x8b|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|7z\xbc\xaf": "a compressed archive. Unpack it first",
    rb"\x80[\x03-\x05]|\x80\x02(?!\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19)": (
        f"a pickle that torch.save did not write, such as Detectron2's, which holds NumPy arrays. {_STATE_DICT}"
    ),
    rb"\x93NUMPY": "a NumPy array. lrzip reads PyTorch's formats",
}
_ZIP_MEMBERS = {
    r".*\.npy": "a NumPy archive. lrzip reads PyTorch's formats",
    r"(.*/)?model\.weights\.h5": "a Keras model. lrzip reads PyTorch's formats",
}


# Suffixes of weights that other libraries keep in archives, such as TabNet and stable-baselines3.
_WEIGHTS = {".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx"}
# Members of the archives that torch itself writes, which hold files with these suffixes as well.
_PROGRAM = re.compile(r"([^/]*/)?models/[^/]*\.json")
"""Members of archives that torch.export writes."""
_TORCH = {"data.pkl", "constants.pkl", "archive_format", "serialized_exported_program.json"}


class Foreign:
    """Files that are recognized only to be refused."""

    suffixes: Sequence[str] = ()
    usage: str | None = None
    is_program = False
    holds_entries = False
    holds_metadata = False
    stores_kinds = False

    def matches(self, path: Path) -> bool:
        """Return whether the bytes are those of a known kind of file that lrzip does not read."""
        return _kind_of(path) is not None

    def open(self, path: Path, *, key: Key, trust: bool) -> NoReturn:
        """Refuse the file with a message that names its kind."""
        del key, trust
        raise UnsupportedCheckpoint(f"`{path}` is {str(_kind_of(path)).removesuffix('.')}.")

    def files(self, path: Path) -> Sequence[Path]:
        """Return the file itself."""
        return [path]

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Refuse: these formats are never written."""
        del source, layout, drop
        raise UnsupportedCheckpoint(f"lrzip does not write `{destination}`.")


def _kind_of(path: Path) -> str | None:
    """Return a description of a file that lrzip does not read, or None for all others."""
    if path.is_dir():
        return None
    if not path.is_file():
        return "neither a file nor a folder"
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    # The length of a safetensors header can look like any magic number below, but none of these kinds of files has a
    # small length followed by a brace.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return None
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        inner = [name for name in names if Path(name).suffix.lower() in _WEIGHTS]
        if inner and not any(Path(name).name in _TORCH or _PROGRAM.fullmatch(name) for name in names):
            return f"an archive with {_shown(inner)} in it. Unpack it, and give that file"
        for pattern, what in _ZIP_MEMBERS.items():
            if any(re.fullmatch(pattern, name) for name in names):
                return what
    with opened_pickle(path) as file:
        found = _refused_protocol(file) if file else None
    return found or next((what for magic, what in _MAGIC.items() if re.match(magic, head)), None)


def _shown(names: Sequence[str]) -> str:
    return " and ".join(f"`{as_line(name)}`" for name in names[:3]) + (" and others" if len(names) > 3 else "")


def _refused_protocol(file: IO[bytes]) -> str | None:
    """Return a description of a pickle whose protocol torch.save does not use by default; executes nothing."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "PROTO" and argument != 2:
            return (
                f"pickled with protocol {argument}, which cannot be read safely. Save it with torch.save's own protocol"
            )
        return None
    return None


FORMAT = Foreign()

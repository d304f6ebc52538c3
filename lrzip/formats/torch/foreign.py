"""Files that are not checkpoints lrzip reads, recognized by their bytes and named as what they are."""

import pickletools
import re
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, NoReturn

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.plan import Entry
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.formats.torch.pickled import opened_pickle

_LONGEST_HEADER = 100_000_000  # of safetensors, by its own reader
_STATE_DICT = "Save its weights with `torch.save(model.state_dict(), path)` and compress those."
_MAGIC = {
    rb"version https://git-lfs": "a Git-LFS pointer, not the file itself. Fetch it with `git lfs pull`",
    rb"LRZI": "an archive of the other lrzip, Long Range ZIP. Unpack it with that program",
    rb"\s*(?i:<!doctype html|<html|<\?xml)": "a web page, saved in place of the file. Download the file itself",
    rb"\x89HDF\r\n": "an HDF5 file, as Keras writes. lrzip reads PyTorch's formats",
    rb"GGUF": "a GGUF file of llama.cpp. Compress the checkpoint that it was made from",
    rb"\x1f\x8b|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|7z\xbc\xaf": "a compressed archive. Unpack it first",
    rb"\x80[\x03-\x05]": f"a pickle that torch.save did not write. {_STATE_DICT}",
    rb"\x93NUMPY": "a NumPy array. lrzip reads PyTorch's formats",
}
_ZIP_MEMBERS = {
    r".*\.npy": "a NumPy archive. lrzip reads PyTorch's formats",
    r"(.*/)?model\.weights\.h5": "a Keras model. lrzip reads PyTorch's formats",
}


class Foreign:
    """All that is recognized only to be refused."""

    suffixes: Sequence[str] = ()
    usage: str | None = None
    is_program = False

    def matches(self, path: Path) -> bool:
        """Tell whether the bytes are of a kind that has a name here."""
        return _what(path) is not None

    def open(self, path: Path, *, key: str | None, trust: bool) -> NoReturn:
        """Refuse, saying what it is."""
        del key, trust
        raise UnsupportedCheckpoint(f"`{path}` is {str(_what(path)).removesuffix('.')}.")

    def files(self, path: Path) -> Sequence[Path]:
        """Return the one file."""
        return [path]

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Refuse: nothing is ever read in these formats that could be written back."""
        del source, layout, drop
        raise UnsupportedCheckpoint(f"lrzip does not write `{destination}`.")


def _what(path: Path) -> str | None:
    if path.is_dir():
        return None
    if not path.is_file():
        return "neither a file nor a folder"
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    # The length of a safetensors header may begin like anything below, but no file there has one of so few digits.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return None
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        for pattern, what in _ZIP_MEMBERS.items():
            if any(re.fullmatch(pattern, name) for name in names):
                return what
    with opened_pickle(path) as file:
        found = _what_object(file) if file else None
    return found or next((what for magic, what in _MAGIC.items() if re.match(magic, head)), None)


def _what_object(file: IO[bytes]) -> str | None:
    """Return what a pickle is if it is of a protocol that torch.save uses only if told so; executes nothing."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "PROTO" and argument != 2:
            return (
                f"pickled with protocol {argument}, which cannot be read safely. Save it with torch.save's own protocol"
            )
        return None
    return None


FORMAT = Foreign()

"""Checks of `.npz` files, before anything is allocated that they claim to hold."""

import zipfile
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from lrzip.core.errors import LrzipError

# The most that deflate can expand a byte to; a directory that claims more is false.
_EXPANSION = 1032
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def check_npz(path: Path) -> None:
    """Refuse an archive whose arrays claim more bytes than are stored.

    Raises:
        LrzipError: An array claims more than its member can hold, or a member more than its bytes unpack to.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            most = max(member.compress_size, 1) * (1 if member.compress_type == zipfile.ZIP_STORED else _EXPANSION)
            if member.file_size > most or member.compress_size > path.stat().st_size:
                raise LrzipError(f"`{path}`: `{name}` claims {member.file_size} bytes, and the file has fewer.")
            with archive.open(member) as file:
                claimed = _claimed(file) if member.filename.endswith(".npy") else 0
            if claimed > member.file_size:
                raise LrzipError(f"`{path}`: `{name}` claims {claimed} bytes, and the file has {member.file_size}.")


def _claimed(file: IO[bytes]) -> int:
    """Return the bytes that the header of an array claims, with its own; 0 for objects, which are not read."""
    version = np.lib.format.read_magic(file)
    read_header = _HEADERS.get(version, np.lib.format.read_array_header_2_0)  # version 3.0 differs in its encoding
    shape, _, dtype = read_header(file)
    return 0 if dtype.hasobject else file.tell() + prod(shape) * dtype.itemsize
